#include "cli/bench/arrivals.h"

#include <cmath>

namespace vivarium::cli::bench {

Arrivals::Arrivals(const ArrivalOptions& options) : options_(options), random_(options.seed) {}

double Arrivals::Gap() {
  switch (options_.kind) {
    case ArrivalKind::kConstant:
      return is_first_ ? 0 : 1;
    case ArrivalKind::kPoisson:
      return std::exponential_distribution<double>(1)(random_);
    case ArrivalKind::kGamma:
      return std::gamma_distribution<double>(options_.burstiness, 1 / options_.burstiness)(random_);
  }
  return 1;
}

double Arrivals::TimeOf(double expected_count) const {
  const double from = options_.rate;
  if (options_.end_rate <= 0 || options_.ramp_seconds <= 0) return expected_count / from;
  const double to = options_.end_rate;
  const double in_ramp = (from + to) / 2 * options_.ramp_seconds;
  if (expected_count >= in_ramp) return options_.ramp_seconds + (expected_count - in_ramp) / to;
  // from * t + slope / 2 * t^2 = expected_count, in the form that is exact for slope -> 0.
  const double slope = (to - from) / options_.ramp_seconds;
  return 2 * expected_count / (from + std::sqrt(from * from + 2 * slope * expected_count));
}

double Arrivals::Next() {
  expected_count_ += Gap();
  is_first_ = false;
  return TimeOf(expected_count_);
}

}  // namespace vivarium::cli::bench
