// Runner: the loads of one invocation, one after the other, and the summary of them all.
#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "cli/bench/bench_flags.h"
#include "cli/bench/live_view.h"

namespace vivarium::cli::bench {

struct RunnerOptions {
  int repeat = 1;
  bool sweep = false;
};

// A load is saturated where the server answers fewer requests than this share of those offered,
// or (closed loop) where twice the users gained less than 5 % of throughput.
inline constexpr double kSaturatedShare = 0.9;
inline constexpr double kSaturatedGain = 1.05;

// Stop may be called from any thread; the rest is for one.
class Runner {
 public:
  Runner(Plan plan, RunnerOptions options, LoadClient* client, LiveView* view);

  // The error is the server's to a question before the first load.
  absl::Status Run();
  void Stop();

  const std::vector<Json>& loads() const { return loads_; }
  Json Summary() const;
  // JSON lines, each with the number of its load.
  const std::string& RecordLines() const { return record_lines_; }

 private:
  // False when stopped.
  bool RunLoad(const LoadOptions& options);
  void Prepare(Workload* workload);
  bool IsSaturated() const;
  bool IsStopped();

  Plan plan_;
  const RunnerOptions options_;
  LoadClient* const client_;
  LiveView* const view_;
  ServerFacts server_;
  std::vector<Json> loads_;
  std::vector<Json> repeats_;  // spreads, one per load that was repeated
  std::string record_lines_;
  std::string started_at_;
  uint64_t num_clipped_rows_ = 0;

  absl::Mutex mutex_;
  Driver* driver_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool is_stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace vivarium::cli::bench
