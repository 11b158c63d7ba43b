#include "cli/bench/warnings.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "cli/bench/driver.h"
#include "cli/bench/summary.h"

namespace vivarium::cli::bench {
namespace {

void WarnOfLength(const Json& load, Json* warnings) {
  const double window = load["window_s"];
  if (window < kMinWindowSeconds) {
    warnings->push_back(
        absl::StrFormat("the run was short: %.1f s were measured, %.0f s or more "
                        "give steadier figures",
                        window, kMinWindowSeconds));
  }
  const uint64_t count = load["latency_ms"]["ttft"]["count"];
  if (count < 100 * kMinSamplesBeyondRank) {
    warnings->push_back(absl::StrFormat(
        "%d requests are too few for a p99 of TTFT that rests on %d samples (%d needed; p99.9: %d)",
        count, kMinSamplesBeyondRank, 100 * kMinSamplesBeyondRank, 1000 * kMinSamplesBeyondRank));
  }
}

void WarnOfClient(const Json& load, Json* warnings) {
  const double used = load["client"]["cpu_cores"], available = load["client"]["available_cores"];
  if (used > kMaxClientCpuShare * available) {
    warnings->push_back(
        absl::StrFormat("the client was the bottleneck: it used %.2f of its %.0f "
                        "cores",
                        used, available));
  }
  const double queue = load["latency_ms"]["client_queue"]["p99"];
  const double ttft = load["latency_ms"]["ttft"]["p50"];
  if (queue > std::max(kMaxClientQueueMs, kMaxClientQueueShare * ttft)) {
    warnings->push_back(
        absl::StrFormat("the client was the bottleneck: 1 %% of the requests were "
                        "sent %.1f ms or more after they were due",
                        queue));
  }
  if (const uint64_t dropped = load["requests"]["dropped_unsent"]; dropped > 0) {
    warnings->push_back(
        absl::StrFormat("%d requests were never sent: more than %d were waiting in "
                        "the client",
                        dropped, kMaxWaiting));
  }
}

void WarnOfReuse(const Json& load, Json* warnings) {
  const double share = load["tokens"]["restored_share"];
  if (share > kMaxRestoredShare) {
    warnings->push_back(
        absl::StrFormat("inflated by reuse: %.0f %% of the prompt tokens were "
                        "restored from states, not computed; don't compare with "
                        "runs of fresh prompts",
                        share * 100));
  }
  const double per_delta = load["tokens"]["per_delta"];
  if (per_delta > kMaxTokensPerDelta) {
    warnings->push_back(
        absl::StrFormat("%.2f tokens came per message: the reader lagged, and ITL "
                        "counts messages; TPOT counts tokens",
                        per_delta));
  }
}

void WarnOfDrift(const Json& load, Json* warnings) {
  const Json& timeline = load["timeline"]["output_tok_s"];
  if (load["load"]["kind"] != "closed" || timeline.size() < 8) return;
  // The first and last eighth are start and end of the run.
  const size_t from = timeline.size() / 8, to = timeline.size() - from, middle = (from + to) / 2;
  double first = 0, second = 0;
  for (size_t i = from; i < middle; ++i) first += timeline[i].get<double>();
  for (size_t i = middle; i < to; ++i) second += timeline[i].get<double>();
  first /= static_cast<double>(middle - from);
  second /= static_cast<double>(to - middle);
  const double mean = (first + second) / 2;
  if (mean > 0 && std::abs(first - second) > kMaxDrift * mean) {
    warnings->push_back(
        absl::StrFormat("not steady: %.0f output tok/s in the first half, %.0f in "
                        "the second",
                        first, second));
  }
}

}  // namespace

Json WarningsOf(const Json& load, bool hit_record_bound) {
  Json warnings = Json::array();
  WarnOfLength(load, &warnings);
  WarnOfClient(load, &warnings);
  WarnOfReuse(load, &warnings);
  WarnOfDrift(load, &warnings);
  if (hit_record_bound) {
    warnings.push_back(
        absl::StrFormat("sending ended at %d requests, the most that one load keeps", kMaxRecords));
  }
  const uint64_t errors = load["requests"]["errors"], counted = load["requests"]["counted"];
  if (errors > 0) {
    warnings.push_back(absl::StrFormat("%d of %d requests failed; they are in no latency figure",
                                       errors, counted));
  }
  return warnings;
}

}  // namespace vivarium::cli::bench
