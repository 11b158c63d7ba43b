#include "engine/runtime/mailbox.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace vivarium::engine {

absl::Status Mailbox::Put(std::unique_ptr<Sequence> sequence) {
  absl::MutexLock lock(&mutex_);
  if (!failure_.ok()) {
    ++rejected_streams_;
    return failure_;
  }
  if (draining_ || stopping_) {
    ++rejected_streams_;
    return absl::UnavailableError("the engine is draining and takes no new streams");
  }
  const int64_t num_queued = taken_waiting_ + static_cast<int64_t>(submitted_.size());
  if (num_queued >= max_queued_streams_) {
    ++rejected_streams_;
    return absl::ResourceExhaustedError(absl::StrCat("the engine's queue is full: ", num_queued,
                                                     " streams wait, at most ",
                                                     max_queued_streams_));
  }
  const auto num_tokens = static_cast<int64_t>(sequence->prefill_tokens());
  const int64_t num_queued_tokens = taken_tokens_ + submitted_tokens_;
  if (num_queued_tokens > 0 && num_tokens > max_queued_tokens_ - num_queued_tokens) {
    ++rejected_streams_;
    return absl::ResourceExhaustedError(
        absl::StrCat("the engine's queue is full: ", num_queued_tokens, " prompt tokens wait, and ",
                     num_tokens, " more would be above the limit of ", max_queued_tokens_));
  }
  submitted_tokens_ += num_tokens;
  unfinished_.insert(sequence->id());
  submitted_.push_back(std::move(sequence));
  work_arrived_.Signal();
  return absl::OkStatus();
}

void Mailbox::CountRejected() {
  absl::MutexLock lock(&mutex_);
  ++rejected_streams_;
}

void Mailbox::Cancel(StreamId id) {
  absl::MutexLock lock(&mutex_);
  if (!unfinished_.contains(id)) return;
  cancelled_.insert(id);
  work_arrived_.Signal();
}

void Mailbox::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  drain_deadline_ = std::min(drain_deadline_, deadline);
  work_arrived_.Signal();
  while (!unfinished_.empty()) streams_finished_.Wait(&mutex_);
}

void Mailbox::Stop() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  work_arrived_.Signal();
}

void Mailbox::Fail(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  failure_ = status;
}

EngineStats Mailbox::Stats() const {
  absl::MutexLock lock(&mutex_);
  EngineStats stats = stats_;
  stats.queued_streams = static_cast<int32_t>(taken_waiting_ + submitted_.size());
  stats.queued_tokens = taken_tokens_ + submitted_tokens_;
  stats.rejected_streams = rejected_streams_;
  return stats;
}

Mailbox::Mail Mailbox::Take(bool wait) {
  absl::MutexLock lock(&mutex_);
  while (wait && submitted_.empty() && cancelled_.empty() && !stopping_) {
    work_arrived_.Wait(&mutex_);
  }
  Mail mail;
  mail.submitted.swap(submitted_);
  mail.cancelled.assign(cancelled_.begin(), cancelled_.end());
  std::sort(mail.cancelled.begin(), mail.cancelled.end());
  cancelled_.clear();
  mail.stop = stopping_;
  mail.drain_deadline = drain_deadline_;
  taken_waiting_ += static_cast<int64_t>(mail.submitted.size());
  taken_tokens_ += std::exchange(submitted_tokens_, 0);
  return mail;
}

void Mailbox::Publish(const EngineStats& stats) {
  absl::MutexLock lock(&mutex_);
  stats_ = stats;
  taken_waiting_ = stats.queued_streams;
  taken_tokens_ = stats.queued_tokens;
}

void Mailbox::Forget(const std::vector<StreamId>& finished) {
  if (finished.empty()) return;
  absl::MutexLock lock(&mutex_);
  for (const StreamId id : finished) {
    unfinished_.erase(id);
    cancelled_.erase(id);
  }
  if (unfinished_.empty()) streams_finished_.SignalAll();
}

}  // namespace vivarium::engine
