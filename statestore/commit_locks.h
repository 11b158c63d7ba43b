// CommitLocks: which commit may touch which keys now. Held while a commit checks and writes, so
// that an etag check and the write that relies on it are one; unlike a mutex it may be held across
// the disk, as commits with disjoint keys go on beside each other and share their syncs.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace vivarium::statestore {

// Thread-safe. No holder may ask for more while it holds: then there are no deadlocks.
class CommitLocks {
 public:
  // Releases on destruction. Must not outlive the CommitLocks.
  class Holder {
   public:
    Holder(Holder&& other) noexcept
        : locks_(std::exchange(other.locks_, nullptr)), keys_(std::move(other.keys_)) {}
    Holder& operator=(Holder&&) = delete;
    ~Holder() {
      if (locks_ != nullptr) locks_->Release(keys_);
    }

   private:
    friend class CommitLocks;
    Holder(CommitLocks* locks, std::vector<std::string> keys)
        : locks_(locks), keys_(std::move(keys)) {}

    CommitLocks* locks_;
    std::vector<std::string> keys_;  // empty = everything
  };

  // Waits until nobody holds any of `keys` (one or more) nor everything.
  Holder LockKeys(std::vector<std::string> keys);
  // Waits until nobody holds anything; who comes later waits behind.
  Holder LockAll();

 private:
  void Release(const std::vector<std::string>& keys);

  absl::Mutex mutex_;
  std::set<std::string> held_keys_ ABSL_GUARDED_BY(mutex_);
  bool all_held_ ABSL_GUARDED_BY(mutex_) = false;
  int num_waiting_for_all_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace vivarium::statestore
