// Executor: a few threads for work that blocks (on the store, on long texts), so that neither
// gRPC's threads nor the engine's ever do.
#pragma once

#include <cstddef>
#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace vivarium::server {

// Thread-safe. Work of admitted calls goes before new calls. Destruction runs everything that is
// queued, then joins.
class Executor {
 public:
  using Work = absl::AnyInvocable<void()>;

  // At most `max_new` pieces of new work wait.
  Executor(int num_threads, size_t max_new);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False, and `work` is not run, when as many as allowed wait.
  bool TryRun(Work work) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next piece of work of a call that was admitted; never refused. Bounded by its users: each
  // open call has at most one piece waiting.
  void Continue(Work work) ABSL_LOCKS_EXCLUDED(mutex_);
  // Blocks until nothing is queued or running.
  void WaitUntilIdle() ABSL_LOCKS_EXCLUDED(mutex_);

  size_t max_new() const { return max_new_; }

 private:
  void RunLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWorkOrStops() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool IsIdle() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const size_t max_new_;
  absl::Mutex mutex_;
  std::deque<Work> admitted_ ABSL_GUARDED_BY(mutex_);
  std::deque<Work> new_ ABSL_GUARDED_BY(mutex_);
  int num_running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stops_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace vivarium::server
