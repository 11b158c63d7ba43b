// Whether one load test was worse than another one, with intervals.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/output.h"

namespace vivarium::cli::bench {

inline constexpr int kNumResamples = 1'000;
inline constexpr double kConfidence = 0.95;
inline constexpr size_t kMinComparedSamples = 20;

// `before` and `after` are summaries (summary.h) of the same loads. For every load and figure the
// change (after - before) / before and its 95 % percentile-bootstrap interval over the kept samples
// (of throughput: over the timeline's points, without the first and last eighth), drawn with a
// fixed seed. A figure is worse where the whole interval lies beyond `threshold` (0.05 = 5 %) on
// the bad side, better where it does on the good side. Samples of one run depend on each other, so
// that intervals are somewhat narrow: that is what the threshold is for.
// {"worse": bool, "comparisons": [{load, figure, before, after, change, low, high, verdict}]};
// verdict: worse, better, same, or unknown with too few samples.
// INVALID_ARGUMENT naming what is no such summary, or the load in which they differ.
absl::StatusOr<Json> Compare(const Json& before, const Json& after, double threshold);

std::string RenderComparison(const Json& comparison);

}  // namespace vivarium::cli::bench
