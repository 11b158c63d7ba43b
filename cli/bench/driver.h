// Driver: runs one load, closed or open, and notes down what came of every call.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <queue>
#include <random>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "cli/bench/arrivals.h"
#include "cli/bench/call.h"
#include "cli/bench/histogram.h"
#include "cli/bench/load_client.h"
#include "cli/bench/workload.h"

namespace vivarium::cli::bench {

inline constexpr uint64_t kMaxRecords = 1'000'000;     // of one load; then no more is sent
inline constexpr size_t kMaxWaiting = 100'000;         // due, but over max_in_flight; then dropped
inline constexpr size_t kMaxTimelineSeconds = 86'400;  // of tokens per second

enum class LoadKind { kClosed, kOpen, kTrace };

struct LoadOptions {
  LoadKind kind = LoadKind::kClosed;
  int users = 1;               // closed: each sends its next request when the last is answered
  double stagger_seconds = 0;  // closed: the users' first requests are spread over it
  double think_min_seconds = 0, think_max_seconds = 0;  // closed: uniform between
  ArrivalOptions arrivals;                              // open
  double trace_speed = 1;
  double duration_seconds = 0;  // of sending; 0 = until `requests`
  uint64_t requests = 0;      // roots: forks' children and reconnections come on top; 0 = no bound
  double warmup_seconds = 0;  // at the start, not in the figures
  double grace_seconds = 60;  // for what is in flight when sending ends; then it is cancelled
  int max_in_flight = 10'000;
  uint64_t seed = 1;
};

struct LoadProgress {
  double elapsed_s = 0;
  double done_share = 0;  // 0 .. 1
  uint64_t in_flight = 0, waiting = 0, done = 0, errors = 0, output_tokens = 0;
  double ttft_p50_ms = 0, ttft_p99_ms = 0, itl_p50_ms = 0, itl_p99_ms = 0;
};

struct LoadResult {
  std::vector<CallRecord> records;  // in order of their ends
  // Of calls due in the window that weren't slow readers: gaps between arrivals that carry tokens.
  Histogram itl;
  std::vector<double> tokens_per_second;  // output, second by second
  uint64_t window_output_tokens = 0;
  double window_start_s = 0, window_end_s = 0;
  double wall_s = 0;
  double client_cpu_s = 0;  // of this process
  uint64_t dropped = 0;     // never sent: over kMaxWaiting
  uint64_t retries = 0;     // of reconnections
  bool was_stopped = false;
  bool hit_record_bound = false;
};

// Run may be called once. Stop may be called from any thread.
class Driver {
 public:
  Driver(const LoadOptions& options, LoadClient* client, Workload* workload,
         std::function<void(const LoadProgress&)> on_progress);

  LoadResult Run();
  // Cancels what is in flight; Run returns soon after.
  void Stop();

 private:
  struct Job {
    Clock::time_point at;         // when to send
    Clock::time_point scheduled;  // when it was due
    CallSpec spec;
    int user = -1;
    uint64_t tree = 0;
    bool operator<(const Job& other) const { return at > other.at; }  // for a min-heap
  };
  struct InFlight {
    int user;
    uint64_t tree;
  };

  void ScheduleFirst();
  void ScheduleOpen();
  void AddRoot(Clock::time_point at, int user);
  bool MayAddRoot(Clock::time_point at) const;
  void SendDue(Clock::time_point now);
  void Send(Job job);
  void TakeResults();
  void Take(CallResult result);
  void Retry(const CallResult& result, const InFlight& call);
  void TreeEnded(uint64_t tree, int user, double pause_seconds);
  void Note(const CallResult& result);
  void Wait(Clock::time_point now);
  bool IsOver(Clock::time_point now);
  void Report(Clock::time_point now);
  LoadResult Finish();
  Clock::time_point At(double seconds) const;

  const LoadOptions options_;
  LoadClient* const client_;
  Workload* const workload_;
  const std::function<void(const LoadProgress&)> on_progress_;
  std::mt19937_64 random_;
  Arrivals arrivals_;

  Clock::time_point start_;
  Clock::time_point next_report_;
  std::priority_queue<Job> jobs_;
  std::deque<Job> waiting_;
  std::map<uint64_t, InFlight> in_flight_;
  std::map<uint64_t, int> tree_sizes_;  // calls of a root and what follows it that haven't ended
  uint64_t num_roots_ = 0, num_sent_ = 0;
  bool is_cancelled_ = false;
  bool has_more_arrivals_ = true;
  Histogram all_ttft_, all_itl_;
  uint64_t num_errors_ = 0;
  LoadResult result_;
  double cpu_at_start_ = 0;

  std::atomic<bool> stop_ = false;
  absl::Mutex mutex_;
  absl::CondVar ended_;
  std::vector<CallResult> results_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::cli::bench
