// Mixer: one layer's sequence mixing, y = Mixer(h). One implementation per layer kind; a new
// architecture is a list of layers, not a new engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace vivarium::engine {

// One step of one layer: residual += pending, then residual += Mixer(RMSNorm(residual)). All
// pointers are device memory.
struct MixerStep {
  float* residual;           // [num_tokens, d_model]
  const float* pending;      // [num_tokens, d_model]; null: nothing
  const float* norm_weight;  // [d_model]
  float norm_eps;
  float* normed;   // [num_tokens, d_model], for the normalised residual
  float* out;      // [num_tokens, d_model], for the mixer's output; may be pending
  float* scratch;  // Mixer::scratch_floats_per_token() * num_tokens floats, 64-byte aligned
  int64_t num_tokens;
  const kernels::Segment* segments;  // [num_segments]
  int64_t num_segments;
  bool is_decode;       // every segment is one token, from a slot: rows don't depend on each other
  std::byte* slots;     // slot 0 of the pool
  uint64_t slot_bytes;  // distance between slots
};

// Not thread-safe. Weights live on the backend that it was loaded for.
class Mixer {
 public:
  virtual ~Mixer() = default;
  // The same for every step; layers run one after the other and share one scratch.
  virtual int64_t scratch_floats_per_token() const = 0;
  // Returns what is still to be added to the residual: step.out, or null for nothing.
  virtual const float* Forward(const MixerStep& step) = 0;
};

}  // namespace vivarium::engine
