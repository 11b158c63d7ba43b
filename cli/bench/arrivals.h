// Arrivals: when an open loop's requests are due, whatever becomes of the earlier ones.
#pragma once

#include <cstdint>
#include <random>

namespace vivarium::cli::bench {

enum class ArrivalKind { kConstant, kPoisson, kGamma };

struct ArrivalOptions {
  ArrivalKind kind = ArrivalKind::kPoisson;
  double rate = 1;      // requests per second at the start, > 0
  double end_rate = 0;  // reached after ramp_seconds, linearly; 0 = no ramp
  double ramp_seconds = 0;
  // kGamma: the shape of the gaps' distribution. Their coefficient of variation is
  // 1 / sqrt(burstiness): below 1 is burstier than Poisson, 1 is Poisson, above is more regular.
  double burstiness = 1;
  uint64_t seed = 0;
};

// Gaps of mean 1 are drawn and then mapped through the inverse of the rate's integral, so that
// ramps work alike for every kind. Not thread-safe.
class Arrivals {
 public:
  explicit Arrivals(const ArrivalOptions& options);

  // The next due time in seconds since the start; never decreases. Constant: the first is at 0.
  double Next();

 private:
  double Gap();
  double TimeOf(double expected_count) const;

  const ArrivalOptions options_;
  std::mt19937_64 random_;
  double expected_count_ = 0;
  bool is_first_ = true;
};

}  // namespace vivarium::cli::bench
