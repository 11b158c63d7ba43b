// Int8 checkpoints: what `vivarium model quantize` writes.
//
// The same directory as the source's, but for one file of weights, model.safetensors, in which each
// matrix of
//   backbone.layers.<i>.mixer.in_proj.weight, .out_proj.weight
//   backbone.embeddings.weight (tied), or lm_head.weight (not tied)
// is I8 of its shape [rows, cols], beside a tensor "<its name>_scale", F32 [rows]:
//   W[r, k] = scale[r] * q[r, k], |q| <= 127          (kernels/quantize.h)
// All other tensors are as they were; a state-spaces embedding gets its Hugging Face name.
// config.json gains the field
//   "quantization_config": {"quant_method": "vivarium-int8", "bits": 8, "scales": "row"}
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace vivarium::engine {

struct QuantizedCheckpoint {
  uint64_t source_bytes;  // of weights
  uint64_t bytes;
  int64_t num_quantized;    // matrices
  std::string fingerprint;  // of what was written
};

inline constexpr uint64_t kMaxSideFileBytes = uint64_t{64} << 20;  // tokenizer.json and the like
inline constexpr int kMaxSideFiles = 256;

// Reads the model of `source` and writes the quantised one to `destination`, which must not exist;
// it appears complete or not at all (a "<destination>.part" is written first, and removed on
// failure). Host memory: a few MiB. A model loaded from it has the bits of the source's loaded with
// WeightFormat::kInt8.
//   ALREADY_EXISTS: destination or its ".part"; FAILED_PRECONDITION: source is quantised already;
//   RESOURCE_EXHAUSTED: no room on the disk, with the arithmetic; INVALID_ARGUMENT: malformed
//   source, or a matrix that holds NaN or infinity; UNAVAILABLE: the system refuses a write.
absl::StatusOr<QuantizedCheckpoint> QuantizeCheckpoint(const std::string& source,
                                                       const std::string& destination);

}  // namespace vivarium::engine
