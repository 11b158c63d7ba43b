// Where a session's head may go back to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "statestore/state_store.h"

namespace vivarium::server {

inline constexpr size_t kRewindPageStates = 256;             // that one look at the store reads
inline constexpr size_t kMaxRewindStates = size_t{1} << 24;  // that a walk back passes

// One of them.
struct RewindTarget {
  std::string state_id;
  std::optional<uint64_t> position;  // the newest state at or before it that has its bytes
  std::optional<uint32_t> steps;     // that many states back, at least 1; snapshots don't count
};

// The head of `session` or an ancestor of it, without its transcript. Walks back, however far.
// FAILED_PRECONDITION, reason CANT_REWIND, where there is none, or its bytes are gone: then the
// nearest ones that are left are named.
absl::StatusOr<statestore::StateManifest> FindRewindTarget(statestore::StateStore& store,
                                                           const statestore::Session& session,
                                                           const RewindTarget& target);

}  // namespace vivarium::server
