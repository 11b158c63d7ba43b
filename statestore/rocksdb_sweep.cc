// RocksDbStore: what takes bytes back. Dropping states, expired states and requests, orphans.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"
#include "statestore/record_codec.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kMaxRemovedPerBatch = 256;  // manifests of a chain
constexpr size_t kMaxRequestsPerBatch = 1024;

// The keys that name a manifest, its own included. Its expiry's is not among them: it goes with the
// bytes.
void PlanForget(const StateManifest& manifest, rocksdb::WriteBatch* batch) {
  const std::string& tenant = manifest.tenant;
  batch->Delete(Key(KeyKind::kManifest, tenant, manifest.id));
  if (!manifest.parent_id.empty()) {
    batch->Delete(Key(KeyKind::kChild, tenant, manifest.parent_id, manifest.id));
  }
  if (!manifest.session.empty()) {
    batch->Delete(Key(KeyKind::kMadeIn, tenant, manifest.session, manifest.id));
  }
  for (const auto& [key, value] : manifest.labels) {
    batch->Delete(LabelPrefix(tenant, key, value) + manifest.id);
  }
}

}  // namespace

absl::Status RocksDbStore::DropState(const StoredManifest& stored, bool sync) {
  const StateManifest& manifest = stored.manifest;
  rocksdb::WriteBatch batch;
  Counters difference;
  absl::Status status = PlanDrop(stored, &batch, &difference);
  if (!status.ok()) return status;
  absl::StatusOr<bool> has_child = HasOtherChild(manifest.tenant, manifest.id, "");
  if (!has_child.ok()) return has_child.status();
  StateId rest;
  if (*has_child) {
    PutDropped(stored, &batch);
  } else {
    PlanForget(manifest, &batch);
    difference += {0, -1, 0, 0};
    status =
        RemoveChain(manifest.tenant, manifest.parent_id, manifest.id, &batch, &difference, &rest);
    if (!status.ok()) return status;
  }
  batch.Merge(KeyPrefix(KeyKind::kCounters, manifest.tenant), EncodeCounters(difference));
  status = WriteIndexed(&batch, sync);
  if (!status.ok()) return status;
  quotas_.Add(manifest.tenant, difference.num_states, difference.live_bytes);
  return rest.empty() ? absl::OkStatus() : FinishRemovals(manifest.tenant, rest);
}

void RocksDbStore::PutDropped(const StoredManifest& stored, rocksdb::WriteBatch* batch) {
  const StateManifest& manifest = stored.manifest;
  batch->Put(Key(KeyKind::kManifest, manifest.tenant, manifest.id),
             EncodeManifest({AsDropped(manifest), {stored.chunks.chunk_bytes, {}, 0}}));
}

absl::Status RocksDbStore::PlanDrop(const StoredManifest& stored, rocksdb::WriteBatch* batch,
                                    Counters* difference) {
  const StateManifest& manifest = stored.manifest;
  const std::string& tenant = manifest.tenant;
  cache_.Erase(CacheKey(tenant, manifest.id));
  for (uint32_t i = 0; i < stored.chunks.checksums.size(); ++i) {
    batch->Delete(database_->chunks(), ChunkKey(tenant, manifest.id, i));
  }
  if (manifest.expires != absl::InfiniteFuture()) {
    batch->Delete(ExpiryKey(KeyKind::kExpiry, tenant, manifest.expires, manifest.id));
  }
  if (manifest.prefix_hash.has_value()) {
    batch->Delete(PrefixKey(tenant, IndexedHash(manifest), manifest.id));
  }
  *difference += {-1, 0, 0, -static_cast<int64_t>(manifest.stored_bytes)};
  return PlanForgetHeads(tenant, manifest.id, batch);
}

// Sessions that could have gone back to it no longer can.
absl::Status RocksDbStore::PlanForgetHeads(const std::string& tenant, const StateId& id,
                                           rocksdb::WriteBatch* batch) {
  const std::string prefix = KeyPrefix(KeyKind::kHeadOf, tenant, id);
  RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
  for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
    batch->Delete(AsSlice(range.key()));
    const std::string name(range.key().substr(prefix.size()));
    absl::StatusOr<std::optional<Session>> session = ReadSession(tenant, name, nullptr);
    if (!session.ok()) return session.status();
    if (!session->has_value()) continue;
    std::vector<StateId>& heads = (*session)->recent_heads;
    heads.erase(std::remove(heads.begin(), heads.end(), id), heads.end());
    batch->Put(Key(KeyKind::kSession, tenant, name), EncodeSession(**session));
  }
  return range.status();
}

absl::Status RocksDbStore::RemoveChain(const std::string& tenant, StateId id, StateId removed_child,
                                       rocksdb::WriteBatch* batch, Counters* difference,
                                       StateId* rest) {
  for (size_t num_removed = 0; !id.empty(); ++num_removed) {
    absl::StatusOr<std::optional<StoredManifest>> stored =
        ReadManifest(tenant, id, nullptr, ManifestPart::kWithoutTranscript);
    if (!stored.ok()) return stored.status();
    if (!stored->has_value() || !(*stored)->manifest.bytes_dropped) return absl::OkStatus();
    absl::StatusOr<bool> has_child = HasOtherChild(tenant, id, removed_child);
    if (!has_child.ok()) return has_child.status();
    if (*has_child) return absl::OkStatus();
    if (num_removed == kMaxRemovedPerBatch) {
      batch->Put(Key(KeyKind::kGarbage, tenant, id), "");
      *rest = id;
      return absl::OkStatus();
    }
    PlanForget((*stored)->manifest, batch);
    *difference += {0, -1, 0, 0};
    removed_child = id;
    id = (*stored)->manifest.parent_id;
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::FinishRemovals(const std::string& tenant, StateId id) {
  while (!id.empty()) {
    rocksdb::WriteBatch batch;
    Counters difference;
    StateId rest;
    batch.Delete(Key(KeyKind::kGarbage, tenant, id));
    absl::Status status = RemoveChain(tenant, id, "", &batch, &difference, &rest);
    if (!status.ok()) return status;
    batch.Merge(KeyPrefix(KeyKind::kCounters, tenant), EncodeCounters(difference));
    if (status = database_->Write(&batch, /*sync=*/false); !status.ok()) return status;
    id = rest;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RocksDbStore::HasOtherChild(const std::string& tenant, const StateId& id,
                                                 const StateId& child) {
  const std::string prefix = KeyPrefix(KeyKind::kChild, tenant, id);
  RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
  for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
    if (range.key().substr(prefix.size()) != child) return true;
  }
  if (absl::Status status = range.status(); !status.ok()) return status;
  return false;
}

absl::Status RocksDbStore::Sweep(absl::Time now) {
  uint64_t num_expired = 0;
  uint64_t num_orphan_chunks = 0;
  absl::Status status = SweepExpired(now, &num_expired);
  if (status.ok()) status = SweepRequests(now);
  if (status.ok()) status = SweepOrphans(&num_orphan_chunks);
  if (status.ok()) status = SweepGarbage();
  if (status.ok()) status = CompactIfWorthwhile();
  if (events_ != nullptr) events_->OnSweep(num_expired, num_orphan_chunks);
  return status;
}

absl::Status RocksDbStore::SweepExpired(absl::Time now, uint64_t* num_expired) {
  return ForEachTenant(KeyKind::kExpiry, [&](const std::string& tenant) {
    return SweepExpiredOf(tenant, now, num_expired);
  });
}

absl::Status RocksDbStore::SweepExpiredOf(const std::string& tenant, absl::Time now,
                                          uint64_t* num_expired) {
  // Protected states keep their key; the iterator's own snapshot passes them once.
  RocksDbRange range(database_->db(), KeyPrefix(KeyKind::kExpiry, tenant),
                     ExpiryEnd(KeyKind::kExpiry, tenant, now), nullptr);
  for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
    const StateId id(ExpiringId(range.key(), tenant));
    absl::Status status = DropIfExpired(tenant, id, now, num_expired);
    if (absl::IsDataLoss(status) || absl::IsUnimplemented(status)) {
      // One damaged state must not keep all others' bytes.
      if (events_ != nullptr) events_->OnFault(status);
    } else if (!status.ok()) {
      return status;
    }
  }
  return range.status();
}

absl::Status RocksDbStore::DropIfExpired(const std::string& tenant, const StateId& id,
                                         absl::Time now, uint64_t* num_expired) {
  const CommitLocks::Holder held = locks_.LockAll();
  absl::StatusOr<std::optional<StoredManifest>> stored =
      ReadManifest(tenant, id, nullptr, ManifestPart::kAll);
  if (!stored.ok()) return stored.status();
  if (!stored->has_value() || (*stored)->manifest.bytes_dropped) return absl::OkStatus();
  absl::StatusOr<bool> is_live = IsLive((*stored)->manifest, now, nullptr);
  if (!is_live.ok()) return is_live.status();
  if (*is_live) return absl::OkStatus();
  // Unsynced: nobody was told; after a power loss the next sweep drops it again.
  if (absl::Status status = DropState(**stored, /*sync=*/false); !status.ok()) return status;
  ++*num_expired;
  return absl::OkStatus();
}

absl::Status RocksDbStore::SweepRequests(absl::Time now) {
  return ForEachTenant(KeyKind::kRequestExpiry, [&](const std::string& tenant) {
    size_t num_removed = 0;
    absl::Status status;
    do {
      const CommitLocks::Holder held = locks_.LockAll();
      status = SweepRequestsOf(tenant, ExpiryEnd(KeyKind::kRequestExpiry, tenant, now),
                               kMaxRequestsPerBatch, &num_removed);
    } while (status.ok() && num_removed == kMaxRequestsPerBatch);
    return status;
  });
}

absl::Status RocksDbStore::SweepRequestsOf(const std::string& tenant, const std::string& end,
                                           size_t max_removed, size_t* num_removed) {
  *num_removed = 0;
  rocksdb::WriteBatch batch;
  {
    RocksDbRange range(database_->db(), KeyPrefix(KeyKind::kRequestExpiry, tenant), end, nullptr);
    for (range.iterator().SeekToFirst(); range.iterator().Valid() && *num_removed < max_removed;
         range.iterator().Next()) {
      batch.Delete(AsSlice(range.key()));
      batch.Delete(Key(KeyKind::kRequest, tenant, ExpiringId(range.key(), tenant)));
      ++*num_removed;
    }
    if (absl::Status status = range.status(); !status.ok()) return status;
  }
  if (*num_removed == 0) return absl::OkStatus();
  absl::Status status = database_->Write(&batch, /*sync=*/false);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  num_requests_[tenant] -= std::min(num_requests_[tenant], *num_removed);
  return absl::OkStatus();
}

absl::Status RocksDbStore::SweepOrphans(uint64_t* num_orphan_chunks) {
  return ForEachTenant(KeyKind::kIntent, [&](const std::string& tenant) {
    const std::string prefix = KeyPrefix(KeyKind::kIntent, tenant);
    RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
    for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
      const StateId id(range.key().substr(prefix.size()));
      IdHold hold(this);
      if (!hold.Add(tenant, id)) continue;  // no orphan: a commit is writing it
      // The iterator's view may be older than the commit's end: look again.
      absl::StatusOr<std::optional<std::string>> intent =
          database_->Get(std::string(range.key()), nullptr);
      if (!intent.ok()) return intent.status();
      if (!intent->has_value()) continue;
      const auto num_chunks = std::min(ByteReader(**intent).Number<uint32_t>(), kMaxChunks);
      DiscardChunks(tenant, id, num_chunks);
      if (absl::Status status = database_->CheckWritable(); !status.ok()) return status;
      *num_orphan_chunks += num_chunks;
    }
    return range.status();
  });
}

absl::Status RocksDbStore::SweepGarbage() {
  return ForEachTenant(KeyKind::kGarbage, [&](const std::string& tenant) {
    const std::string prefix = KeyPrefix(KeyKind::kGarbage, tenant);
    RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
    for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
      const CommitLocks::Holder held = locks_.LockAll();
      absl::Status status = FinishRemovals(tenant, StateId(range.key().substr(prefix.size())));
      if (!status.ok()) return status;
    }
    return range.status();
  });
}

}  // namespace vivarium::statestore
