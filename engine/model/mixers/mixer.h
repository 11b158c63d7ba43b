// Mixer: one layer's sequence mixing, y = Mixer(h). One implementation per layer kind; a new
// architecture is a list of layers, not a new engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace vivarium::engine {

// One step of one layer. All pointers are device memory.
struct MixerStep {
  const float* x;  // [num_tokens, d_model]: normalised input
  float* out;      // [num_tokens, d_model]: receives the mixer's output
  float* scratch;  // Mixer::scratch_floats_per_token() * num_tokens floats, 64-byte aligned
  int64_t num_tokens;
  const kernels::Segment* segments;  // [num_segments]
  int64_t num_segments;
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

}  // namespace vivarium::engine
