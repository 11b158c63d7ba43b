// Log-probabilities of tokens: natural logarithm of the softmax over the usable ids.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::engine {

struct TokenLogprob;

// The softmax of one row of raw logits. The sum is one of integers (token_weight.h), so equal
// logits give equal log-probabilities on every backend. Absolute error below 1e-6.
class LogSoftmax {
 public:
  // INTERNAL as CheckLogits says, or when all logits are -infinity. `logits` is not empty, has at
  // most 2^21 elements, and must outlive the result.
  static absl::StatusOr<LogSoftmax> Create(std::span<const float> logits, uint64_t position);

  float operator()(int32_t id) const {
    return static_cast<float>(static_cast<double>(logits_[id]) - log_sum_);
  }
  // The `count` most likely tokens, best first, equal ones by id.
  std::vector<TokenLogprob> Top(int32_t count) const;

 private:
  LogSoftmax(std::span<const float> logits, double log_sum) : logits_(logits), log_sum_(log_sum) {}

  std::span<const float> logits_;
  double log_sum_;  // ln(sum exp(logit))
};

// The natural logarithm of a positive normal number to the last bit or two, spelled out in IEEE
// operations: a C library's may differ from machine to machine.
double NaturalLog(double value);

}  // namespace vivarium::engine
