// LayerKind::kMamba: Mamba-1 (Gu & Dao 2023, section 3.4; state-spaces/mamba
// mamba_ssm/modules/mamba_simple.py):
//   [x|z]   = W_in h
//   x       = silu(causal_conv1d(x))
//   [r|B|C] = W_x x                    Falcon-Mamba: each of r, B, C through a weightless RMSNorm
//   dt      = W_dt r                   bias and softplus inside the scan
//   y       = selective_scan(x, dt, A, B, C, D) * silu(z)
//   out     = W_out y
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/checkpoint/model_config.h"
#include "engine/model/mixers/mixer.h"
#include "engine/model/weight_reader.h"
#include "engine/runtime/state.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// Appends the parts of layer `layer_index`'s state to `layout`, at the next multiple of 64 bytes:
// the convolution's window as f32, the SSM state as ssm_dtype (f32 or bf16).
void AppendMambaState(const ModelConfig& config, int64_t layer_index, kernels::DType ssm_dtype,
                      StateLayout* layout);

// Reads layer `layer_index` (tensors "backbone.layers.<i>.mixer.*"). `layout` must hold its parts.
absl::StatusOr<std::unique_ptr<Mixer>> LoadMamba(const ModelConfig& config, int64_t layer_index,
                                                 const StateLayout& layout,
                                                 kernels::Backend* backend, WeightReader* reader);

}  // namespace vivarium::engine
