#include "statestore/commit_locks.h"

#include <algorithm>
#include <cassert>

namespace vivarium::statestore {

CommitLocks::Holder CommitLocks::LockKeys(std::vector<std::string> keys) {
  assert(!keys.empty());
  const auto are_free = [this, &keys]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !all_held_ && num_waiting_for_all_ == 0 &&
           std::none_of(keys.begin(), keys.end(),
                        [this](const std::string& key)
                            ABSL_NO_THREAD_SAFETY_ANALYSIS { return held_keys_.contains(key); });
  };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&are_free));
  held_keys_.insert(keys.begin(), keys.end());
  return Holder(this, std::move(keys));
}

CommitLocks::Holder CommitLocks::LockAll() {
  const auto is_free = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !all_held_ && held_keys_.empty();
  };
  absl::MutexLock lock(&mutex_);
  ++num_waiting_for_all_;
  mutex_.Await(absl::Condition(&is_free));
  --num_waiting_for_all_;
  all_held_ = true;
  return Holder(this, {});
}

void CommitLocks::Release(const std::vector<std::string>& keys) {
  absl::MutexLock lock(&mutex_);
  if (keys.empty()) all_held_ = false;
  for (const std::string& key : keys) held_keys_.erase(key);
}

}  // namespace vivarium::statestore
