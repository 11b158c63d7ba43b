// Sampler: logits -> the next token of one stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/runtime/sampling_params.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

// Everything that decides one token. The spans are borrowed during the call.
struct SampleRequest {
  std::span<const float> logits;            // [num_ids] of the sampler, natural logarithms
  const SamplingParams& params;             // valid (ValidateSamplingParams)
  std::span<const TranscriptToken> recent;  // the window that penalties look at
  std::span<const int32_t> banned_ids;      // never chosen (end-of-sequence under min_tokens)
  uint64_t position;                        // absolute index of the token in its thread
};

// Chooses tokens. A function of the SampleRequest alone: equal requests give equal tokens on every
// backend and machine (philox.h, token_weight.h), whatever was sampled before or beside.
//
// The filters select by (logit, lower id first) after bias, penalties and temperature:
//   top_k  the k largest;
//   top_p  of these, the fewest of the largest whose weights sum to at least top_p of their sum;
//   min_p  of these, those with at least min_p times the largest weight.
// The largest is always kept. Ids that weigh less than 2^-42 of the largest are never sampled.
//
// Not thread-safe: has scratch memory of about 12 bytes per id, allocated once.
class Sampler {
 public:
  // Usable ids are 0 .. num_ids - 1: rows beyond (padding) don't exist for it. 1 <= num_ids <=
  // 2^21.
  explicit Sampler(int64_t num_ids);

  // INTERNAL naming id, value and position for a logit that is NaN or +infinity, or when no id is
  // left to choose (all -infinity or banned). -infinity = can't be chosen.
  absl::StatusOr<int32_t> Sample(const SampleRequest& request);

  int64_t num_ids() const { return num_ids_; }

 private:
  struct Candidate {
    uint64_t key;  // SelectionKey: larger = chosen first
    uint64_t weight;
  };

  void ApplyPenalties(const SampleRequest& request);
  int32_t Draw(const SampleRequest& request, float max_logit);
  void SelectTopK(size_t k);
  void SelectHeavy(const SamplingParams& params, uint64_t total);
  void SelectTopP(uint64_t mass_wanted);
  void SelectMinWeight(uint64_t min_weight);

  int64_t num_ids_;
  std::vector<float> logits_;                            // [num_ids] after bias and penalties
  std::vector<uint64_t> weights_;                        // [num_ids]
  std::vector<uint32_t> prompt_counts_, output_counts_;  // [num_ids], zero between calls
  std::vector<Candidate> candidates_;                    // reserved on first use
};

// OK when no logit is NaN or +infinity; else INTERNAL naming the first one's id and the position.
absl::Status CheckLogits(std::span<const float> logits, uint64_t position);

// The index of the largest logit, ties to the lower; `logits` not empty and without NaN.
int32_t ArgMax(std::span<const float> logits);

// Orders ids by logit, and equal logits by id, lower first: larger keys come first. Distinct ids
// have distinct keys. `logit` is not NaN.
uint64_t SelectionKey(float logit, int32_t id);
int32_t SelectedId(uint64_t key);

}  // namespace vivarium::engine
