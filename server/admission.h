// Admission: whether a new stream would begin soon enough to be worth taking. What would only wait
// is refused at once, with a hint when to come back: a queue that is longer than its clients'
// patience does work that nobody reads any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/server_options.h"

namespace vivarium::server {

inline constexpr absl::Duration kMinRetryDelay = absl::Seconds(1);
inline constexpr absl::Duration kMaxRetryDelay = absl::Seconds(60);
// Beginnings that must have been seen before a wait is predicted.
inline constexpr size_t kMinIntervals = 8;

// A stream waits from Enter until Leave. The expected wait of the next one is the number of those
// that wait, times the mean time between two beginnings while somebody waited, over the last
// `max_intervals` of them, and the time since the last one.
// Thread-safe; never blocks for long.
class Admission {
 public:
  struct Limits {
    int64_t max_waiting;
    absl::Duration max_wait;  // of streams that are taken; InfiniteDuration = any
    // At least kMinIntervals; should cover the streams that may begin together: those that run.
    size_t max_intervals;
  };
  explicit Admission(const Limits& limits) : limits_(limits) {}

  // Whether a stream with that deadline is to be taken. RESOURCE_EXHAUSTED with a retry delay and
  // reason QUEUE_FULL (as many wait as may), WAIT_TOO_LONG, or DEADLINE_TOO_SOON where it would
  // begin after its deadline.
  absl::Status Check(absl::Time now, absl::Time deadline) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Check, and where that is OK the stream waits from now on: at once, so that streams that come
  // together don't pass the bounds together.
  absl::Status Enter(absl::Time now, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // It began, or ended before that.
  void Leave(absl::Time now, bool has_begun) ABSL_LOCKS_EXCLUDED(mutex_);

  int64_t num_waiting() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Of a stream that comes now; zero while too little is known.
  absl::Duration ExpectedWait(absl::Time now) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status CheckLocked(absl::Time now, absl::Time deadline) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration ExpectedWaitLocked(absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  int64_t num_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  // The last beginning, or when somebody waited again after it.
  absl::Time interval_began_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::deque<absl::Duration> intervals_ ABSL_GUARDED_BY(mutex_);
  absl::Duration sum_ ABSL_GUARDED_BY(mutex_);  // of intervals_
};

Admission::Limits AdmissionLimits(const ServerOptions& options);

}  // namespace vivarium::server
