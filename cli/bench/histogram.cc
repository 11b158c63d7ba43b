#include "cli/bench/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace vivarium::cli::bench {
namespace {

// 1-based rank of the sample that is the quantile.
uint64_t Rank(uint64_t count, double q) {
  const double rank = std::ceil(std::clamp(q, 0.0, 1.0) * static_cast<double>(count) - 1e-9);
  return std::clamp<uint64_t>(static_cast<uint64_t>(std::max(rank, 1.0)), 1, count);
}

}  // namespace

size_t Histogram::BucketOf(uint64_t value) {
  constexpr uint64_t kSubBuckets = uint64_t{1} << kSubBucketBits;
  if (value < kSubBuckets) return value;
  const int shift = std::bit_width(value) - 1 - kSubBucketBits;
  return (static_cast<size_t>(shift) << kSubBucketBits) + (value >> shift);
}

double Histogram::MiddleOf(size_t bucket) {
  constexpr size_t kSubBuckets = size_t{1} << kSubBucketBits;
  if (bucket < 2 * kSubBuckets) return static_cast<double>(bucket);
  const size_t shift = (bucket >> kSubBucketBits) - 1;
  const double base =
      std::ldexp(static_cast<double>(kSubBuckets + bucket % kSubBuckets), static_cast<int>(shift));
  return base + std::ldexp(0.5, static_cast<int>(shift));
}

void Histogram::Record(int64_t value_ns) {
  const int64_t value = std::max<int64_t>(value_ns, 0);
  ++counts_[BucketOf(static_cast<uint64_t>(value))];
  ++count_;
  sum_ += static_cast<double>(value);
  max_ = std::max(max_, value);
}

void Histogram::Merge(const Histogram& other) {
  for (size_t i = 0; i < kNumBuckets; ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  sum_ += other.sum_;
  max_ = std::max(max_, other.max_);
}

double Histogram::Quantile(double q) const {
  if (count_ == 0) return 0;
  const uint64_t rank = Rank(count_, q);
  uint64_t seen = 0;
  for (size_t i = 0; i < kNumBuckets; ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::min(MiddleOf(i), static_cast<double>(max_));
  }
  return static_cast<double>(max_);
}

double QuantileOfSorted(const std::vector<double>& sorted, double q) {
  return sorted.empty() ? 0 : sorted[Rank(sorted.size(), q) - 1];
}

}  // namespace vivarium::cli::bench
