// Whether what a call is to save can be saved, asked before it begins: so that a full quota or a
// full disk costs no token.
#pragma once

#include "absl/status/statusor.h"
#include "server/parts.h"
#include "server/request.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// How many states a stream must be able to store, whatever happens: those at the prompt's end and
// at the end, where a drain may put one too. Snapshots are not among them.
uint64_t NumCertainStates(const SavePlan& save);

// Quota for `num_states` states of the served model; none of 0. RESOURCE_EXHAUSTED: reason
// QUOTA_EXCEEDED, or DISK_FULL below the disk's reserve; UNAVAILABLE, STORE_FAULT, where the store
// stopped writing. Asks the file system for its free space.
absl::StatusOr<statestore::StateReservation> AdmitSaves(const Parts& parts, uint64_t num_states,
                                                        statestore::StateCodec codec);

}  // namespace vivarium::server
