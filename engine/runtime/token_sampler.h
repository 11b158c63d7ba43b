// TokenSampler: the tokens and log-probabilities that one step's logits give, all rows in one op.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/device_memory.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/sampling_params.h"
#include "engine/runtime/state.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// Everything but the logits that decides one token. The spans are borrowed during the call.
struct SampleRequest {
  const SamplingParams& params;             // valid (ValidateSamplingParams)
  std::span<const TranscriptToken> recent;  // the window that penalties look at
  std::span<const int32_t> banned_ids;      // never chosen (end-of-sequence under min_tokens)
  uint64_t position;                        // absolute index of the token in its thread
  int32_t num_top_logprobs = -1;            // as EngineRequest's
};

// Gathers what a step's rows of logits are wanted for, runs kernels::SampleTokens on the device
// that holds them, and brings back only ids and log-probabilities. A result is a function of the
// row and its request alone: the same on every backend, whatever is sampled before or beside.
//
// Per step: Begin, then AddSample or AddScore once for each row of logits, in order, then Run; then
// the results, by row. Not thread-safe. Must not outlive its Backend. Device and host memory is
// allocated in Create.
class TokenSampler {
 public:
  // Usable ids are 0 .. num_ids - 1: logits beyond (padding, up to logits_stride) don't exist for
  // it. 1 <= num_ids <= kernels::kMaxSampledIds; a step has max_rows rows at most.
  // RESOURCE_EXHAUSTED when memory runs out.
  static absl::StatusOr<std::unique_ptr<TokenSampler>> Create(kernels::Backend* backend,
                                                              int64_t num_ids,
                                                              int64_t logits_stride,
                                                              int32_t max_rows);
  ~TokenSampler();
  TokenSampler(const TokenSampler&) = delete;
  TokenSampler& operator=(const TokenSampler&) = delete;

  // `logits` [*, num_ids] stride logits_stride is device memory, valid until Run.
  void Begin(float* logits);
  void AddSample(const SampleRequest& request);
  // The log-probability of `token_id`, which is given.
  void AddScore(int32_t token_id, uint64_t position);
  // Completes the step's rows: waits for the device.
  void Run();

  // Of row `row`: the token, or INTERNAL naming id, value and position for a logit that is NaN or
  // +infinity, or when no id is left to choose (all -infinity or banned).
  absl::StatusOr<int32_t> Token(int64_t row) const;
  // Where Token is OK and log-probabilities were asked for: the token's, and the best ones'.
  float Logprob(int64_t row) const { return tokens_[row].logprob; }
  std::vector<TokenLogprob> TopLogprobs(int64_t row) const;

  // Of device memory (on the CPU: of its memory, in all) that one for so many rows takes.
  static size_t DeviceBytes(int32_t max_rows);

  int64_t num_ids() const { return num_ids_; }
  size_t device_bytes() const { return device_.bytes(); }

 private:
  // Where things lie, in bytes from the beginning of device_; host_ is the image of what goes up.
  struct Layout {
    Layout(int64_t max_rows, int64_t max_edits);
    size_t rows, edits, tokens, top, unedited, end;
  };

  TokenSampler(kernels::Backend* backend, int64_t num_ids, int64_t logits_stride, int64_t max_rows,
               int64_t max_edits);

  kernels::SampleRow* AddRow(uint64_t position);
  void AddEdits(const SampleRequest& request, kernels::SampleRow* row);
  // The edit of `token_id` in the row that is being added, made on first use.
  kernels::LogitEdit& EditOf(int32_t token_id);
  // Runs the op for the rows that have not been run.
  void Flush();
  template <typename T>
  T* OnDevice(size_t offset_bytes) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(device_.data()) + offset_bytes);
  }

  kernels::Backend* const backend_;
  const int64_t num_ids_, logits_stride_, max_rows_, max_edits_;
  const Layout layout_;
  DeviceMemory device_;
  std::byte* host_ = nullptr;            // AllocateHost: rows, then edits
  kernels::SampleRow* rows_ = nullptr;   // in host_: [num_rows_ - first_row_]
  kernels::LogitEdit* edits_ = nullptr;  // in host_: [num_edits_]
  std::vector<int32_t> edit_index_;      // [num_ids]: 1 + the edit of the row being added, else 0

  float* logits_ = nullptr;
  int64_t num_rows_ = 0;   // of the step so far
  int64_t first_row_ = 0;  // of those not yet run
  int64_t num_edits_ = 0;  // of those not yet run
  int32_t max_top_ = 0;    // num_top_logprobs of those not yet run, the largest
  struct Wanted {
    uint64_t position;
    int32_t num_top_logprobs;
    bool is_score;
  };
  std::vector<Wanted> wanted_;                 // [num_rows_]
  std::vector<kernels::SampledToken> tokens_;  // [max_rows]
  std::vector<kernels::RankedToken> top_;      // [max_rows][kMaxTopLogprobs]
};

}  // namespace vivarium::engine
