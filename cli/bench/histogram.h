// Histogram: latencies in constant memory, and exact percentiles of kept samples.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace vivarium::cli::bench {

// Log-linear buckets, as in HdrHistogram: 128 per power of two, so that a quantile is off by at
// most 1/256 of its value. Values are nanoseconds, 0 .. 2^63-1; negative ones count as 0. Not
// thread-safe.
class Histogram {
 public:
  static constexpr int kSubBucketBits = 7;
  static constexpr double kMaxRelativeError = 1.0 / 256;

  void Record(int64_t value_ns);
  void Merge(const Histogram& other);

  uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  int64_t max() const { return max_; }
  // The smallest value that a share `q` (0 .. 1) of the samples doesn't exceed (nearest rank), as
  // the middle of its bucket; 0 when empty.
  double Quantile(double q) const;

 private:
  static constexpr size_t kNumBuckets = (64 - kSubBucketBits) << kSubBucketBits;
  static size_t BucketOf(uint64_t value);
  static double MiddleOf(size_t bucket);

  std::array<uint64_t, kNumBuckets> counts_{};
  uint64_t count_ = 0;
  double sum_ = 0;
  int64_t max_ = 0;
};

// Nearest rank, exact. `sorted` ascending; 0 when empty.
double QuantileOfSorted(const std::vector<double>& sorted, double q);

}  // namespace vivarium::cli::bench
