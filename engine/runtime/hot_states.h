// HotStates: slots whose streams have ended, and that keep their states until somebody needs the
// room. A resume of such a state needs no bytes from anywhere else.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

using HotId = uint64_t;  // of a hot state; 0 = none

class HotStates;

// A claim on a hot state: while it is there the state is, in its slot or, where that was needed, in
// host memory. Move-only; given back on destruction, on any thread.
class HotLease {
 public:
  HotLease() = default;  // on nothing
  HotLease(HotLease&& other) noexcept
      : states_(std::move(other.states_)), id_(std::exchange(other.id_, 0)) {}
  HotLease& operator=(HotLease&& other) noexcept;
  ~HotLease() { Release(); }

  explicit operator bool() const { return id_ != 0; }

 private:
  friend class HotStates;
  HotLease(std::shared_ptr<HotStates> states, HotId id) : states_(std::move(states)), id_(id) {}
  void Release();

  std::shared_ptr<HotStates> states_;
  HotId id_ = 0;
};

// Who has which slot; touches no slot itself. Thread-safe: Name and Lease are anybody's, as is
// giving back a lease; all else is the engine's thread's, so that a slot leaves only by its hand.
// Shared with the leases, which may outlive the engine.
class HotStates : public std::enable_shared_from_this<HotStates> {
 public:
  // From now on `slot`, and the state in it, are kept here. It is the newest.
  HotId Add(int32_t slot) ABSL_LOCKS_EXCLUDED(mutex_);

  // How Lease finds it from now on; no-op when it is gone. A name means the last that got it.
  void Name(HotId id, std::string name) ABSL_LOCKS_EXCLUDED(mutex_);
  // On nothing when no state here has that name.
  HotLease Lease(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);

  // The slot of the oldest state that is not leased, which is gone: the caller's; -1 = none.
  int32_t TakeOldest() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether TakeOldest would find one.
  bool HasUnleased() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Where the lease's state is: -1 when it was spilled.
  int32_t SlotOf(const HotLease& lease) const ABSL_LOCKS_EXCLUDED(mutex_);
  // The slot itself, now the caller's, unless it was spilled or others hold leases too: -1.
  int32_t Take(HotLease* lease) ABSL_LOCKS_EXCLUDED(mutex_);
  // The bytes of a spilled state; ends the lease.
  StateBuffer TakeSpilled(HotLease* lease) ABSL_LOCKS_EXCLUDED(mutex_);

  // The oldest state that is in a slot, leased or not: {0, -1} = none.
  struct Placed {
    HotId id = 0;
    int32_t slot = -1;
  };
  Placed Oldest() const ABSL_LOCKS_EXCLUDED(mutex_);
  // From now on its bytes are in `host`, its slot is the caller's. They go with the last lease.
  void Spill(HotId id, StateBuffer host) ABSL_LOCKS_EXCLUDED(mutex_);

  // The device has failed: all is gone, and nothing is leased again. The slots are the caller's.
  std::vector<int32_t> Close() ABSL_LOCKS_EXCLUDED(mutex_);

  int32_t num_slots() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t spilled_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class HotLease;
  struct Entry {
    int32_t slot = -1;  // -1 = spilled
    StateBuffer host;   // of a spilled one
    std::string name;
    int num_leases = 0;
    std::list<HotId>::iterator age;
  };
  using Entries = absl::flat_hash_map<HotId, std::unique_ptr<Entry>>;

  void Release(HotId id) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndLease(Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Out of all tables.
  std::unique_ptr<Entry> Remove(Entries::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  HotId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  std::list<HotId> by_age_ ABSL_GUARDED_BY(mutex_);  // oldest first: by the last use
  size_t num_leased_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t num_spilled_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t spilled_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<std::string, HotId> names_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::engine
