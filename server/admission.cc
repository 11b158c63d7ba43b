#include "server/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/errors.h"

namespace vivarium::server {
namespace {

std::string Seconds(absl::Duration duration) {
  return absl::StrCat(absl::ToInt64Milliseconds(duration) / 1000, ".",
                      absl::ToInt64Milliseconds(duration) % 1000 / 100, " s");
}

}  // namespace

absl::Status Admission::Check(absl::Time now, absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  return CheckLocked(now, deadline);
}

absl::Status Admission::Enter(absl::Time now, absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  if (absl::Status status = CheckLocked(now, deadline); !status.ok()) return status;
  if (num_waiting_++ == 0) interval_began_ = now;
  return absl::OkStatus();
}

absl::Status Admission::CheckLocked(absl::Time now, absl::Time deadline) const {
  if (num_waiting_ >= limits_.max_waiting) {
    return BusyError("streams that wait", static_cast<size_t>(limits_.max_waiting));
  }
  const absl::Duration wait = ExpectedWaitLocked(now);
  const bool is_too_late = now + wait > deadline;
  if (!is_too_late && wait <= limits_.max_wait) return absl::OkStatus();
  const absl::Duration bound = is_too_late ? deadline - now : limits_.max_wait;
  const absl::Duration delay = std::clamp(wait - bound, kMinRetryDelay, kMaxRetryDelay);
  return WithRetryDelay(
      WithReason(absl::ResourceExhaustedError(absl::StrCat(
                     num_waiting_, " streams wait: a new one would begin in about ", Seconds(wait),
                     "; expected within ", is_too_late ? "its deadline, " : "", Seconds(bound))),
                 is_too_late ? "DEADLINE_TOO_SOON" : "WAIT_TOO_LONG",
                 {{"expected_wait", Seconds(wait)}}),
      delay);
}

void Admission::Leave(absl::Time now, bool has_begun) {
  absl::MutexLock lock(&mutex_);
  --num_waiting_;
  if (!has_begun) return;
  const absl::Duration interval = std::max(now - interval_began_, absl::ZeroDuration());
  interval_began_ = now;
  intervals_.push_back(interval);
  sum_ += interval;
  if (intervals_.size() <= limits_.max_intervals) return;
  sum_ -= intervals_.front();
  intervals_.pop_front();
}

int64_t Admission::num_waiting() const {
  absl::MutexLock lock(&mutex_);
  return num_waiting_;
}

absl::Duration Admission::ExpectedWait(absl::Time now) const {
  absl::MutexLock lock(&mutex_);
  return ExpectedWaitLocked(now);
}

absl::Duration Admission::ExpectedWaitLocked(absl::Time now) const {
  if (num_waiting_ == 0 || intervals_.size() < kMinIntervals) return absl::ZeroDuration();
  const absl::Duration since = std::max(now - interval_began_, absl::ZeroDuration());
  return static_cast<double>(num_waiting_) * (sum_ + since) /
         static_cast<double>(intervals_.size() + 1);
}

Admission::Limits AdmissionLimits(const ServerOptions& options) {
  Admission::Limits limits;
  limits.max_waiting = int64_t{options.max_queued_streams} + options.max_live_streams;
  limits.max_wait = options.max_queue_seconds == 0 ? absl::InfiniteDuration()
                                                   : absl::Seconds(options.max_queue_seconds);
  limits.max_intervals = std::max(kMinIntervals, 2 * static_cast<size_t>(options.max_live_streams));
  return limits;
}

}  // namespace vivarium::server
