// SessionManager: who may move which session's head now, and which request ids are in flight.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// A set of names that are held by at most one holder each.
// Thread-safe. Must outlive the holds.
class HoldSet {
 public:
  // Move-only; gives the name back when destroyed or assigned to.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept
        : set_(std::exchange(other.set_, nullptr)), name_(std::move(other.name_)) {}
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { Release(); }

    void Release();
    bool holds() const { return set_ != nullptr; }

   private:
    friend class HoldSet;
    Hold(HoldSet* set, std::string name) : set_(set), name_(std::move(name)) {}

    HoldSet* set_ = nullptr;
    std::string name_;
  };

  // Nothing when another holds it.
  std::optional<Hold> TryHold(std::string name) ABSL_LOCKS_EXCLUDED(mutex_);
  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  std::set<std::string> held_ ABSL_GUARDED_BY(mutex_);
};

// A session that the holder alone may change, in this process; the etag guards it across processes.
struct LeasedSession {
  std::string name;
  std::optional<statestore::Session> current;  // absent: it does not exist yet
  HoldSet::Hold lease;

  // What a Commit::HeadMove must expect.
  std::string etag() const { return current ? current->etag : ""; }
};

// Thread-safe.
class SessionManager {
 public:
  // `store` must outlive it.
  explicit SessionManager(statestore::StateStore* store) : store_(store) {}

  // ABORTED naming the session while another holds it, or when `expected_etag` is neither "" nor
  // the session's; INVALID_ARGUMENT for a malformed name; errors of the store. Blocks on it.
  absl::StatusOr<LeasedSession> Lease(const std::string& tenant, const std::string& name,
                                      const std::string& expected_etag);
  // Likewise, without the right to change it. NOT_FOUND does not occur: see `current`.
  absl::StatusOr<LeasedSession> Read(const std::string& tenant, const std::string& name,
                                     const std::string& expected_etag);

  // The right to run the request `request_id`. ABORTED while another has it.
  absl::StatusOr<HoldSet::Hold> HoldRequest(const std::string& tenant,
                                            const std::string& request_id);

  size_t num_leases() const { return leases_.size(); }

 private:
  statestore::StateStore* const store_;
  HoldSet leases_;
  HoldSet requests_;
};

}  // namespace vivarium::server
