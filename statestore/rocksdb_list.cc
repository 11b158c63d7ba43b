// RocksDbStore: lists.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "statestore/page_token.h"
#include "statestore/record_codec.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/state_validation.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {

std::string RocksDbStore::CandidatesPrefix(const std::string& tenant, const StateFilter& filter) {
  if (!filter.parent_id.empty()) return KeyPrefix(KeyKind::kChild, tenant, filter.parent_id);
  if (!filter.session.empty()) return KeyPrefix(KeyKind::kMadeIn, tenant, filter.session);
  if (!filter.labels.empty()) {
    return LabelPrefix(tenant, filter.labels.begin()->first, filter.labels.begin()->second);
  }
  return KeyPrefix(KeyKind::kManifest, tenant);
}

absl::StatusOr<StoredManifest> RocksDbStore::ReadListed(const std::string& tenant,
                                                        const StateId& id,
                                                        const rocksdb::Snapshot* snapshot) {
  absl::StatusOr<std::optional<StoredManifest>> stored =
      ReadManifest(tenant, id, snapshot, ManifestPart::kWithoutTranscript);
  if (!stored.ok()) return stored.status();
  if (stored->has_value()) return **std::move(stored);
  return absl::DataLossError(absl::StrCat("state ", id, " is listed but has no manifest"));
}

absl::StatusOr<Page<StateManifest>> RocksDbStore::ListStates(const std::string& tenant,
                                                             const StateFilter& filter,
                                                             int page_size,
                                                             const std::string& page_token) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateFilter(filter);
  if (status.ok()) status = ValidatePageSize(page_size);
  if (!status.ok()) return status;
  const std::string scope = StatesListScope(tenant, filter);
  absl::StatusOr<std::string> last_id = DecodePageToken(scope, page_token);
  if (!last_id.ok()) return last_id.status();

  // Backwards: newest first.
  const std::string prefix = CandidatesPrefix(tenant, filter);
  const bool is_index = prefix != KeyPrefix(KeyKind::kManifest, tenant);
  const RocksDbSnapshot snapshot(database_->db());
  RocksDbRange range(database_->db(), prefix,
                     last_id->empty() ? PrefixEnd(prefix) : prefix + *last_id, snapshot.get());
  const absl::Time now = clock_();
  Page<StateManifest> page;
  size_t num_scanned = 0;
  std::string scanned_id;
  for (range.iterator().SeekToLast(); range.iterator().Valid(); range.iterator().Prev()) {
    const bool is_full = page.items.size() == static_cast<size_t>(page_size) ||
                         num_scanned == options_.max_scanned_per_page;
    if (is_full) {
      page.next_page_token = EncodePageToken(scope, scanned_id);
      break;
    }
    ++num_scanned;
    const std::string id(range.key().substr(prefix.size()));
    absl::StatusOr<StoredManifest> stored =
        is_index ? ReadListed(tenant, id, snapshot.get())
                 : DecodeStored(tenant, id, range.value(), ManifestPart::kWithoutTranscript);
    if (!stored.ok()) return stored.status();
    absl::StatusOr<StateManifest> shown = Shown(*std::move(stored), now, snapshot.get());
    if (!shown.ok()) return shown.status();
    scanned_id = id;
    if (!Matches(filter, *shown)) continue;
    page.items.push_back(*std::move(shown));
  }
  if (status = range.status(); !status.ok()) return status;
  return page;
}

absl::StatusOr<Page<Session>> RocksDbStore::ListSessions(const std::string& tenant, int page_size,
                                                         const std::string& page_token) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidatePageSize(page_size);
  if (!status.ok()) return status;
  const std::string scope = SessionsListScope(tenant);
  absl::StatusOr<std::string> last_name = DecodePageToken(scope, page_token);
  if (!last_name.ok()) return last_name.status();
  const std::string prefix = KeyPrefix(KeyKind::kSession, tenant);
  // The last name itself is left out: names are printable, so nothing lies between it and it +
  // "\0".
  std::string begin = prefix + *last_name;
  if (!last_name->empty()) begin.push_back('\0');
  RocksDbRange range(database_->db(), begin, PrefixEnd(prefix), nullptr);
  Page<Session> page;
  for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
    if (page.items.size() == static_cast<size_t>(page_size)) {
      page.next_page_token = EncodePageToken(scope, page.items.back().name);
      break;
    }
    const std::string name(range.key().substr(prefix.size()));
    absl::StatusOr<Session> session = DecodeSession(range.value());
    if (!session.ok() || session->tenant != tenant || session->name != name) {
      return absl::DataLossError(absl::StrCat("session \"", name, "\": ",
                                              session.ok()
                                                  ? "under its key lies another session"
                                                  : std::string(session.status().message())));
    }
    page.items.push_back(*std::move(session));
  }
  if (status = range.status(); !status.ok()) return status;
  return page;
}

}  // namespace vivarium::statestore
