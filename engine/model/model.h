// Model: the forward pass of a language model over a flat batch of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/model_config.h"
#include "engine/runtime/state.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// How weight matrices are held and multiplied. kAuto: int8 when the file's projections are (model
// quantize), else bf16 when the file's matrices are 16-bit, else f32. kInt8: in_proj, out_proj and
// lm_head (with a tied embedding) as int8, the others as by kAuto.
enum class WeightFormat : uint8_t { kAuto = 0, kBF16 = 1, kF32 = 2, kInt8 = 3 };

// One step's work: rows of all sequences one after the other, cut by segments (kernels/ops.h).
struct Batch {
  std::span<const int32_t> token_ids;  // [num_tokens], each in [0, padded_vocab_size)
  // Cover the rows, in order; chains are legal, the batch's first segment begins one.
  std::span<const kernels::Segment> segments;
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, increasing
};

inline constexpr int32_t kMaxBatchRows = 1 << 16;

struct ModelOptions {
  WeightFormat weights = WeightFormat::kAuto;
  int32_t max_batch_tokens =
      512;  // rows of a Batch at most, 1 .. kMaxBatchRows; sizes the activations
  // Between tokens, the SSM state is held, and rounded to, kF32 or kBF16 (half the memory of a slot
  // and of a stored state); the convolution's window is f32 always.
  kernels::DType state_dtype = kernels::DType::kF32;
  int32_t max_logit_rows = 512;  // logit_rows at most, 1 .. kMaxBatchRows; sizes the logits buffer
};

// The layout of such a model's states, all layers' parts (see StateLayout); slot_bytes is what a
// state takes on the device, on the host and, without compression, in the store.
StateLayout MakeStateLayout(const ModelConfig& config, kernels::DType state_dtype);

// Holds the weights, packed for a backend, and the activations (allocated once, here).
// Not thread-safe: one thread calls Forward. Must not outlive `backend`. Needs the Checkpoint only
// during Load.
class Model {
 public:
  // INVALID_ARGUMENT naming the tensor, the expected and the found shape; RESOURCE_EXHAUSTED with
  // the arithmetic when memory runs out.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const Checkpoint& checkpoint,
                                                     const ModelConfig& config,
                                                     kernels::Backend* backend,
                                                     const ModelOptions& options);
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const StateLayout& state_layout() const = 0;
  virtual kernels::Backend* backend() const = 0;
  // Hex of a hash over the dimensions and every tensor's canonical name, dtype, shape and content:
  // the same for both namings and both file formats of the same weights.
  virtual std::string_view fingerprint() const = 0;
  // Backend::numerics_name() + "-w" + weight dtype, e.g. "cpu-avx512-v1-wbf16"; int8 also with that
  // of the matrices that stay: "-wint8-bf16"; with bf16 states then "-sbf16".
  virtual std::string_view numerics_id() const = 0;
  virtual uint64_t weight_bytes() const = 0;      // device memory of weights
  virtual uint64_t activation_bytes() const = 0;  // device memory of activations and logits
  virtual int32_t max_batch_tokens() const = 0;
  virtual int32_t max_logit_rows() const = 0;

  // Runs one step. `slots` is device memory: slot s of the pool begins at
  // slots + s * state_layout().slot_bytes. Row i of the result is batch.logit_rows[i]'s logits,
  // f32 [logit_rows.size(), padded_vocab_size], in device memory of the model, complete after
  // Backend::Synchronize(), valid (for the caller to change, too) until the next call.
  virtual float* Forward(const Batch& batch, std::byte* slots) = 0;
};

}  // namespace vivarium::engine
