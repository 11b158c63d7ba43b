// Mailbox: where every other thread hands work to the engine's thread, and reads how it is going.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/sequence.h"

namespace vivarium::engine {

// All that is shared between threads, and the only lock. Thread-safe.
class Mailbox {
 public:
  Mailbox(int32_t max_queued_streams, int64_t max_queued_tokens)
      : max_queued_streams_(max_queued_streams), max_queued_tokens_(max_queued_tokens) {}

  // RESOURCE_EXHAUSTED when max_queued_streams wait already, or when those that wait would with
  // this one have more than max_queued_tokens to consume; UNAVAILABLE after Drain, Stop or Fail.
  absl::Status Put(std::unique_ptr<Sequence> sequence);
  // For requests that Put never saw.
  void CountRejected();
  // No-op unless the stream is unfinished.
  void Cancel(StreamId id);
  // From now on Put refuses; returns when no stream is unfinished. The earliest deadline counts.
  void Drain(absl::Time deadline);
  void Stop();
  // From now on Put answers `status`.
  void Fail(const absl::Status& status);
  EngineStats Stats() const;

  // The engine's side.
  struct Mail {
    std::vector<std::unique_ptr<Sequence>> submitted;
    std::vector<StreamId> cancelled;
    bool stop = false;
    absl::Time drain_deadline = absl::InfiniteFuture();
  };
  // Takes all there is; with `wait`, sleeps until there is something.
  Mail Take(bool wait);
  // How things stand after a step.
  void Publish(const EngineStats& stats);
  // These streams are finished, and their sinks are gone.
  void Forget(const std::vector<StreamId>& finished);

 private:
  const int32_t max_queued_streams_;
  const int64_t max_queued_tokens_;

  mutable absl::Mutex mutex_;
  absl::CondVar work_arrived_;
  absl::CondVar streams_finished_;
  std::vector<std::unique_ptr<Sequence>> submitted_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<StreamId> cancelled_ ABSL_GUARDED_BY(mutex_);   // a subset of unfinished_
  absl::flat_hash_set<StreamId> unfinished_ ABSL_GUARDED_BY(mutex_);  // Put and not yet finished
  int64_t submitted_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t taken_waiting_ ABSL_GUARDED_BY(mutex_) = 0;  // taken, and queued in the scheduler
  int64_t taken_tokens_ ABSL_GUARDED_BY(mutex_) = 0;   // of those taken that have not started
  uint64_t rejected_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::engine
