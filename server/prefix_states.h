// PrefixStates: the states that the server stores by itself where prompts part, for later prompts
// to go on from. Ordinary states with a label and a time to live; there are so many at most, and
// the least recently used go first.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/runtime/state.h"
#include "server/parts.h"
#include "server/session_manager.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// Their label. A state whose label somebody takes away, or that is pinned or a head, is theirs and
// no longer one of these.
inline constexpr std::string_view kPrefixLabel = "vivarium.made-for";
inline constexpr std::string_view kPrefixLabelValue = "prefix-reuse";

// Thread-safe.
class PrefixStates {
 public:
  // `parts` must outlive it and be complete before the first call.
  explicit PrefixStates(Parts* parts) : parts_(parts) {}

  // Whether one could be stored now: the store writes, and less than half of the quota is taken.
  bool MayStore(const std::string& tenant) const;
  // Drops all of them: somebody else needs the quota. False: there were none. Blocks on the store.
  bool GiveBack(const std::string& tenant) ABSL_LOCKS_EXCLUDED(mutex_);
  // The right to store one of `tenant`; nothing while another is being stored. Never blocks.
  std::optional<HoldSet::Hold> BeginSave(const std::string& tenant) {
    return saves_.TryHold(tenant);
  }
  // Stores `state`, unless there is one with the same tokens. `tokens` are its thread's first, up
  // to the pending one: position + 1. Blocks on the store.
  absl::Status Save(const std::string& tenant, std::unique_ptr<engine::StateSnapshot> state,
                    const std::vector<int32_t>& tokens, HoldSet::Hold hold)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // A prompt goes on from state `id`, be it one of these or not. One of these that has less than
  // half of its time left gets all of it again, later. Blocks on the store only the first time.
  void NoteUse(const std::string& tenant, const statestore::StateId& id)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    statestore::StateId id;
    absl::Time expires;
  };
  struct Tenant {
    bool is_known = false;      // what an earlier run of the server left has been read
    std::deque<Entry> entries;  // the least recently used first
  };

  absl::Status Store(const std::string& tenant, engine::StateSnapshot* state,
                     const std::vector<int32_t>& tokens, Entry* entry);
  void Learn(const std::string& tenant) ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns how many.
  size_t DropBeyond(const std::string& tenant, size_t limit) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Duration ttl() const;

  Parts* const parts_;
  HoldSet saves_;
  absl::Mutex mutex_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::server
