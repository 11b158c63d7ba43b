// Mixer: one layer's sequence mixing, y = Mixer(h). One implementation per layer kind; a new
// architecture is a list of layers, not a new engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/model_config.h"
#include "engine/model/weight_reader.h"
#include "engine/runtime/state.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// One step of one layer. All pointers but segments' are device memory.
struct MixerStep {
  const float* x;  // [num_tokens, d_model]: normalised input
  float* out;      // [num_tokens, d_model]: receives the mixer's output
  float* scratch;  // Mixer::scratch_floats_per_token() * num_tokens floats, 64-byte aligned
  int64_t num_tokens;
  std::span<const kernels::Segment> segments;
  std::byte* slots;     // slot 0 of the pool
  uint64_t slot_bytes;  // distance between slots
};

// Not thread-safe. Weights live on the backend that it was loaded for.
class Mixer {
 public:
  virtual ~Mixer() = default;
  // The same for every step; layers run one after the other and share one scratch.
  virtual int64_t scratch_floats_per_token() const = 0;
  virtual void Forward(const MixerStep& step) = 0;
};

// Appends the parts of layer `layer_index`'s state to `layout`, at the next multiple of 64 bytes.
void AppendMambaState(const ModelConfig& config, int64_t layer_index, StateLayout* layout);

// Reads layer `layer_index` (tensors "backbone.layers.<i>.mixer.*"). `layout` must hold its parts.
absl::StatusOr<std::unique_ptr<Mixer>> LoadMamba(const ModelConfig& config, int64_t layer_index,
                                                 const StateLayout& layout,
                                                 kernels::Backend* backend, WeightReader* reader);

}  // namespace vivarium::engine
