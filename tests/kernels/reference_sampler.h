// The meaning of SampleTokens once more, plainly: a copy of the row, all weights, and candidates
// that are selected by partial sorting. Shares only the arithmetic of single numbers
// (kernels/sampling_math.h) with the ops.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace vivarium::kernels {

struct RecentToken {
  int32_t id;
  bool is_output;
};

// Everything that decides one token. The spans are borrowed.
struct ReferenceRequest {
  std::span<const float> logits;
  SampleRow row;  // its edits are not looked at: they are what follows
  std::span<const std::pair<int32_t, float>> bias = {};
  std::span<const RecentToken> recent = {};
  std::span<const int32_t> banned_ids = {};
};

class ReferenceSampler {
 public:
  explicit ReferenceSampler(int64_t num_ids);
  // Token or failure; no log-probability.
  SampledToken Sample(const ReferenceRequest& request);

 private:
  struct Candidate {
    uint64_t key;  // SelectionKey: larger = chosen first
    uint64_t weight;
  };

  void ApplyPenalties(const ReferenceRequest& request);
  int32_t Draw(const SampleRow& row, float max_logit);
  void SelectTopK(size_t k);
  void SelectHeavy(const SampleRow& row, uint64_t total);
  void SelectTopP(uint64_t mass_wanted);
  void SelectMinWeight(uint64_t min_weight);

  int64_t num_ids_;
  std::vector<float> logits_;                            // [num_ids] after bias and penalties
  std::vector<uint64_t> weights_;                        // [num_ids]
  std::vector<uint32_t> prompt_counts_, output_counts_;  // [num_ids], zero between calls
  std::vector<Candidate> candidates_;
};

// Orders ids by logit, and equal logits by id, lower first: larger keys come first.
uint64_t SelectionKey(float logit, int32_t id);
int32_t SelectedId(uint64_t key);

// The edits that a row needs for a request's bias, penalties and bans.
std::vector<LogitEdit> EditsOf(const ReferenceRequest& request);

// The softmax of one row of raw logits without NaN or +infinity, not all of them -infinity.
class ReferenceLogSoftmax {
 public:
  explicit ReferenceLogSoftmax(std::span<const float> logits);
  float operator()(int32_t id) const;
  // The `count` most likely tokens, best first, equal ones by id.
  std::vector<RankedToken> Top(int32_t count) const;

 private:
  std::span<const float> logits_;
  double log_sum_;  // ln(sum exp(logit))
};

}  // namespace vivarium::kernels
