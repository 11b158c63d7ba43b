// State parts in Hugging Face's form, for files and for comparison with other implementations.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/model_config.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

// One Mamba layer's state, row-major, f32.
struct MambaLayerState {
  std::vector<float> conv_state;  // [d_inner, d_conv - 1]: the convolution's last inputs, oldest
                                  // first (Hugging Face's conv_state has one older column more)
  std::vector<float> ssm_state;   // [d_inner, d_state]
};

// Reads layer `layer_index` of `slot`, a slot's bytes on the host. INVALID_ARGUMENT when the layer
// does not exist, or when slot or layout are not of this model.
absl::StatusOr<MambaLayerState> ReadLayerState(const ModelConfig& config, const StateLayout& layout,
                                               std::span<const std::byte> slot,
                                               int64_t layer_index);

// The reverse: writes `state` into `slot`, rounded where the layout has bf16; padded lanes become
// zero. INVALID_ARGUMENT as above, or
// when a vector has another size.
absl::Status WriteLayerState(const ModelConfig& config, const StateLayout& layout,
                             int64_t layer_index, const MambaLayerState& state,
                             std::span<std::byte> slot);

}  // namespace vivarium::engine
