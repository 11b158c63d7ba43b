// What a load test found, as JSON: everything that the report, `compare` and scripts need.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/driver.h"
#include "cli/output.h"

namespace vivarium::cli::bench {

inline constexpr char kSummarySchema[] = "vivarium.bench/1";
inline constexpr size_t kMaxSamples = 2'000;         // of one figure kept for `compare`
inline constexpr size_t kMaxTimelinePoints = 600;    // of a load
inline constexpr size_t kMaxErrorExamples = 20;      // distinct codes are 17 at most
inline constexpr size_t kMinSamplesBeyondRank = 10;  // that a percentile rests on, else a warning

// What counts towards goodput; milliseconds, 0 = no bound.
struct Slo {
  double ttft_ms = 0, tpot_ms = 0, e2e_ms = 0, max_itl_ms = 0;
  bool IsGiven() const { return ttft_ms > 0 || tpot_ms > 0 || e2e_ms > 0 || max_itl_ms > 0; }
  bool IsMetBy(const CallRecord& record) const;
};
// "ttft=500,tpot=50,e2e=10000,itl=200". INVALID_ARGUMENT naming the word at fault.
absl::StatusOr<Slo> ParseSlo(const std::string& text);

// {count, mean, p50, p90, p95, p99, p99_9, max} in milliseconds, of seconds; exact.
Json LatencyJson(std::vector<double> seconds);
Json LatencyJson(const Histogram& histogram);

// One load's figures. `num_cpus` is how many cores the client may use.
Json SummarizeLoad(const LoadOptions& options, const LoadResult& result, const Slo& slo,
                   int num_cpus);
// Spread of loads that were run alike: for each main figure the lowest, the highest and
// (highest - lowest) / mean.
Json SpreadOf(const std::vector<Json>& loads);
// One line of the per-request log.
Json RecordJson(const CallRecord& record);

// The table that is printed for people.
std::string RenderLoads(const std::vector<Json>& loads);

}  // namespace vivarium::cli::bench
