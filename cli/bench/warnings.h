// What a reader of a load test's figures must know before believing them.
#pragma once

#include "cli/output.h"

namespace vivarium::cli::bench {

inline constexpr double kMinWindowSeconds = 10;
inline constexpr double kMaxClientCpuShare = 0.7;    // of the cores that the client may use
inline constexpr double kMaxClientQueueShare = 0.1;  // p99 of the client's queue : p50 of TTFT
inline constexpr double kMaxClientQueueMs = 5;       // below, no warning whatever the share
inline constexpr double kMaxRestoredShare = 0.1;     // of what prompts stand on
inline constexpr double kMaxTokensPerDelta = 1.05;
inline constexpr double kMaxDrift = 0.2;  // between the halves' output tok/s

// Sentences about one load, from its summary without warnings.
Json WarningsOf(const Json& load, bool hit_record_bound);

}  // namespace vivarium::cli::bench
