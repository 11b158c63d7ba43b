// RocksDbStore: changes of single states and sessions.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "statestore/record_codec.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/state_validation.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {
namespace {

void PlanLabels(const StateManifest& manifest, const Labels& labels, rocksdb::WriteBatch* batch) {
  for (const auto& [key, value] : manifest.labels) {
    batch->Delete(LabelPrefix(manifest.tenant, key, value) + manifest.id);
  }
  for (const auto& [key, value] : labels) {
    batch->Put(LabelPrefix(manifest.tenant, key, value) + manifest.id, "");
  }
}

void PlanExpiry(const StateManifest& manifest, absl::Time expires, rocksdb::WriteBatch* batch) {
  if (manifest.expires != absl::InfiniteFuture()) {
    batch->Delete(ExpiryKey(KeyKind::kExpiry, manifest.tenant, manifest.expires, manifest.id));
  }
  if (expires != absl::InfiniteFuture()) {
    batch->Put(ExpiryKey(KeyKind::kExpiry, manifest.tenant, expires, manifest.id), "");
  }
}

}  // namespace

absl::StatusOr<StateManifest> RocksDbStore::UpdateState(const std::string& tenant,
                                                        const StateId& id,
                                                        const StateUpdate& update) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (status.ok() && update.labels.has_value()) status = ValidateLabels(*update.labels);
  if (status.ok()) status = database_->CheckSpace(0);
  if (!status.ok()) return status;
  const CommitLocks::Holder held = locks_.LockKeys({Key(KeyKind::kManifest, tenant, id)});
  absl::StatusOr<StoredManifest> stored = ReadLive(tenant, id, nullptr, ManifestPart::kAll);
  if (!stored.ok()) return stored.status();
  StateManifest& manifest = stored->manifest;
  rocksdb::WriteBatch batch;
  if (update.labels.has_value()) PlanLabels(manifest, *update.labels, &batch);
  if (update.expires.has_value()) PlanExpiry(manifest, *update.expires, &batch);
  UpdateManifest(update, &manifest);
  batch.Put(Key(KeyKind::kManifest, tenant, id), EncodeManifest(*stored));
  if (status = database_->Write(&batch, /*sync=*/true); !status.ok()) return status;
  return std::move(manifest);
}

absl::Status RocksDbStore::DeleteSession(const std::string& tenant, const std::string& name,
                                         const std::string& expected_etag) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateSessionName(name);
  if (!status.ok()) return status;
  const std::string key = Key(KeyKind::kSession, tenant, name);
  const CommitLocks::Holder held = locks_.LockKeys({key});
  absl::StatusOr<std::optional<Session>> session = ReadSession(tenant, name, nullptr);
  if (!session.ok()) return session.status();
  if (!session->has_value()) return SessionNotFound(name);
  if (!expected_etag.empty()) {
    status = CheckEtag({name, (*session)->head, expected_etag}, *session);
    if (!status.ok()) return status;
  }
  rocksdb::WriteBatch batch;
  batch.Delete(key);
  for (const StateId& id : (*session)->recent_heads) {
    batch.Delete(Key(KeyKind::kHeadOf, tenant, id, name));
  }
  batch.Merge(KeyPrefix(KeyKind::kCounters, tenant), EncodeCounters({0, 0, -1, 0}));
  return database_->Write(&batch, /*sync=*/true);
}

absl::Status RocksDbStore::DeleteState(const std::string& tenant, const StateId& id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  const CommitLocks::Holder held = locks_.LockAll();
  absl::StatusOr<StoredManifest> stored = ReadLive(tenant, id, nullptr, ManifestPart::kAll);
  if (!stored.ok() && !absl::IsDataLoss(stored.status())) return stored.status();
  if (stored.ok() && stored->manifest.pinned) return StateIsPinned(id);
  const std::string prefix = KeyPrefix(KeyKind::kHeadOf, tenant, id);
  {
    RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
    for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
      const std::string name(range.key().substr(prefix.size()));
      absl::StatusOr<std::optional<Session>> session = ReadSession(tenant, name, nullptr);
      if (!session.ok()) return session.status();
      if (session->has_value() && (*session)->head == id) return StateIsHead(id, name);
    }
    if (status = range.status(); !status.ok()) return status;
  }
  // Nobody knows whether a damaged one was pinned: to delete it is what is left to do.
  if (!stored.ok()) return ForgetDamaged(tenant, id);
  return DropState(*stored, /*sync=*/true);
}

}  // namespace vivarium::statestore
