#include "engine/runtime/logprobs.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/sampler.h"
#include "engine/runtime/token_weight.h"

namespace vivarium::engine {

double NaturalLog(double value) {
  constexpr double kLn2 = 0.693147180559945309417;
  constexpr double kSqrt2 = 1.41421356237309504880;
  constexpr int kMantissaBits = 52;
  constexpr uint64_t kMantissaMask = (uint64_t{1} << kMantissaBits) - 1;
  constexpr uint64_t kExponentBias = 1023;
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  int64_t exponent = static_cast<int64_t>(bits >> kMantissaBits) - int64_t{kExponentBias};
  double m = std::bit_cast<double>((bits & kMantissaMask) | (kExponentBias << kMantissaBits));
  if (m > kSqrt2) {  // into (sqrt(1/2), sqrt(2)]
    m *= 0.5;
    ++exponent;
  }
  // ln(m) = 2 artanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716: the terms fall by 0.0295 each.
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  constexpr int kNumTerms = 12;
  double sum = 0.0;
  for (int i = kNumTerms - 1; i >= 0; --i) sum = sum * s2 + 1.0 / (2 * i + 1);
  return static_cast<double>(exponent) * kLn2 + 2.0 * s * sum;
}

absl::StatusOr<LogSoftmax> LogSoftmax::Create(std::span<const float> logits, uint64_t position) {
  assert(!logits.empty() && static_cast<int64_t>(logits.size()) <= kMaxWeightedIds);
  if (absl::Status status = CheckLogits(logits, position); !status.ok()) return status;
  const float max_logit = logits[ArgMax(logits)];
  if (max_logit == -std::numeric_limits<float>::infinity()) {
    return absl::InternalError(
        absl::StrCat("all ", logits.size(), " logits are -infinity at position ", position));
  }
  uint64_t total = 0;
  for (const float logit : logits) total += TokenWeight((logit - max_logit) * kLog2E);
  const double sum = static_cast<double>(total) * (1.0 / static_cast<double>(kWeightOne));
  return LogSoftmax(logits, static_cast<double>(max_logit) + NaturalLog(sum));
}

std::vector<TokenLogprob> LogSoftmax::Top(int32_t count) const {
  std::vector<uint64_t> keys;  // at most `count`, best first
  keys.reserve(count + 1);
  for (size_t id = 0; count > 0 && id < logits_.size(); ++id) {
    const uint64_t key = SelectionKey(logits_[id], static_cast<int32_t>(id));
    if (keys.size() == static_cast<size_t>(count) && key < keys.back()) continue;
    keys.insert(std::upper_bound(keys.begin(), keys.end(), key, std::greater<>()), key);
    if (keys.size() > static_cast<size_t>(count)) keys.pop_back();
  }
  std::vector<TokenLogprob> top;
  top.reserve(keys.size());
  for (const uint64_t key : keys) top.push_back({SelectedId(key), (*this)(SelectedId(key))});
  return top;
}

}  // namespace vivarium::engine
