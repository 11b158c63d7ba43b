// The rules that every store keeps, as plain functions of values: when a state has expired, how a
// head moves, which states a filter takes, what errors say.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

absl::Status StateNotFound(const StateId& id);
absl::Status SessionNotFound(const std::string& name);
absl::Status RequestNotFound();

// An expired state behaves as a dropped one from that moment on; the sweep only takes its bytes
// back. `is_recent_head`: some session has it among its recent heads.
bool HasExpired(const StateManifest& manifest, bool is_recent_head, absl::Time now);

// How a state without usable bytes is shown in histories and lists.
StateManifest AsDropped(StateManifest manifest);

// A state's labels, pin and expiry after the update. Somebody wants it now: it is no snapshot any
// more.
void UpdateManifest(const StateUpdate& update, StateManifest* manifest);

// Whether thinning may drop the bytes, as far as the manifest tells.
bool MayBeThinned(const StateManifest& manifest);

// What both together may have lost: the larger errors.
StorageLoss WithLoss(const StorageLoss& before, const StorageLoss& now);

bool Matches(const StateFilter& filter, const StateManifest& manifest);

// Whether a head may move: `current` is the session, if there is one. ALREADY_EXISTS, ABORTED.
absl::Status CheckEtag(const Commit::HeadMove& move, const std::optional<Session>& current);

// The session after the move. `current` as above; `etag` is new and unique.
Session MovedSession(const std::string& tenant, const Commit::HeadMove& move,
                     const std::optional<Session>& current, std::string etag, absl::Time now);

// Whether a finished request may be recorded: `current` is the unexpired record under its id, if
// there is one. INVALID_ARGUMENT for another request, ALREADY_EXISTS for the same.
absl::Status CheckRequest(const RequestRecord& request,
                          const std::optional<RequestRecord>& current);

// How many records go once a tenant has `num_requests`: none up to the bound, else so many that
// the next ones don't have to.
size_t NumRequestsToTrim(size_t num_requests, size_t max_requests);

// FAILED_PRECONDITION for pinned states and heads.
absl::Status StateIsPinned(const StateId& id);
absl::Status StateIsHead(const StateId& id, const std::string& session);

}  // namespace vivarium::statestore
