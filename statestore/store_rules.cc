#include "statestore/store_rules.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace vivarium::statestore {

absl::Status StateNotFound(const StateId& id) {
  return absl::NotFoundError(absl::StrCat("state ", id, ": unknown, expired or deleted"));
}

absl::Status SessionNotFound(const std::string& name) {
  return absl::NotFoundError(absl::StrCat("session \"", name, "\": unknown"));
}

absl::Status RequestNotFound() { return absl::NotFoundError("request id: unknown or expired"); }

bool HasExpired(const StateManifest& manifest, bool is_recent_head, absl::Time now) {
  return manifest.expires <= now && !manifest.pinned && !is_recent_head;
}

StateManifest AsDropped(StateManifest manifest) {
  manifest.bytes_dropped = true;
  manifest.stored_bytes = 0;
  manifest.snapshots.clear();
  return manifest;
}

void UpdateManifest(const StateUpdate& update, StateManifest* manifest) {
  if (update.labels.has_value()) manifest->labels = *update.labels;
  if (update.expires.has_value()) manifest->expires = *update.expires;
  if (update.pinned.has_value()) manifest->pinned = *update.pinned;
  manifest->is_snapshot = false;
}

bool MayBeThinned(const StateManifest& manifest) {
  return manifest.is_snapshot && !manifest.pinned && !manifest.bytes_dropped;
}

StorageLoss WithLoss(const StorageLoss& before, const StorageLoss& now) {
  return {std::max(before.max_absolute_error, now.max_absolute_error),
          std::max(before.max_relative_error, now.max_relative_error)};
}

bool Matches(const StateFilter& filter, const StateManifest& manifest) {
  if (manifest.bytes_dropped && !filter.include_dropped) return false;
  if (!filter.session.empty() && manifest.session != filter.session) return false;
  if (!filter.parent_id.empty() && manifest.parent_id != filter.parent_id) return false;
  return std::all_of(filter.labels.begin(), filter.labels.end(), [&](const auto& label) {
    const auto found = manifest.labels.find(label.first);
    return found != manifest.labels.end() && found->second == label.second;
  });
}

absl::Status CheckEtag(const Commit::HeadMove& move, const std::optional<Session>& current) {
  if (move.expected_etag == "*") return absl::OkStatus();
  if (move.expected_etag.empty()) {
    if (!current.has_value()) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat("session \"", move.session, "\" exists"));
  }
  if (current.has_value() && current->etag == move.expected_etag) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(
      "session \"", move.session, "\": etag is ",
      current.has_value() ? current->etag : std::string("none (there is no such session)"),
      ", expected \"", absl::CHexEscape(move.expected_etag), "\""));
}

Session MovedSession(const std::string& tenant, const Commit::HeadMove& move,
                     const std::optional<Session>& current, std::string etag, absl::Time now) {
  Session session;
  if (current.has_value()) session = *current;
  session.tenant = tenant;
  session.name = move.session;
  session.head = move.head;
  session.etag = std::move(etag);
  if (!current.has_value()) session.created = now;
  session.updated = now;
  std::vector<StateId>& heads = session.recent_heads;
  heads.erase(std::remove(heads.begin(), heads.end(), move.head), heads.end());
  heads.insert(heads.begin(), move.head);
  if (heads.size() > kDefaultHeadHistory) heads.resize(kDefaultHeadHistory);
  return session;
}

absl::Status CheckRequest(const RequestRecord& request,
                          const std::optional<RequestRecord>& current) {
  if (!current.has_value()) return absl::OkStatus();
  const std::string id = absl::CHexEscape(request.request_id);
  if (current->request_hash != request.request_hash) {
    return absl::InvalidArgumentError(
        absl::StrCat("request id \"", id, "\" was used for another request"));
  }
  return absl::AlreadyExistsError(absl::StrCat("request \"", id, "\" has finished already"));
}

size_t NumRequestsToTrim(size_t num_requests, size_t max_requests) {
  if (num_requests <= max_requests) return 0;
  return num_requests - (max_requests - max_requests / 16);
}

absl::Status StateIsPinned(const StateId& id) {
  return absl::FailedPreconditionError(absl::StrCat("state ", id, " is pinned"));
}

absl::Status StateIsHead(const StateId& id, const std::string& session) {
  return absl::FailedPreconditionError(
      absl::StrCat("state ", id, " is the head of session \"", session, "\""));
}

}  // namespace vivarium::statestore
