// RocksDbStore: states that have consumed the first tokens of a prompt.
#include <algorithm>
#include <cassert>

#include "statestore/prefix_hash.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {

absl::Status RocksDbStore::LoadPrefixIndex() {
  return ForEachTenant(KeyKind::kPrefix, [this](const std::string& tenant) {
    const std::string prefix = KeyPrefix(KeyKind::kPrefix, tenant);
    RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
    for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
      prefix_index_.Add(tenant, PrefixKeyHash(range.key()));
    }
    return range.status();
  });
}

std::optional<uint64_t> RocksDbStore::MakePrefixHash(const Commit::NewState& state,
                                                     std::span<const StateManifest> earlier) {
  const StateManifest& manifest = state.manifest;
  if (!state.is_reusable) return std::nullopt;
  if (manifest.parent_id.empty()) return PrefixHashOf(manifest, nullptr);
  for (const StateManifest& other : earlier) {
    if (other.id == manifest.parent_id) return PrefixHashOf(manifest, &other);
  }
  // A parent that can't be read keeps the state from being found, not from being stored.
  const auto parent =
      ReadManifest(manifest.tenant, manifest.parent_id, nullptr, ManifestPart::kWithoutTranscript);
  if (!parent.ok() || !parent->has_value()) return std::nullopt;
  return PrefixHashOf(manifest, &(*parent)->manifest);
}

absl::Status RocksDbStore::WriteIndexed(rocksdb::WriteBatch* batch, bool sync) {
  absl::Status status = database_->Write(batch, sync);
  if (!status.ok()) return status;
  class Follower final : public rocksdb::WriteBatch::Handler {
   public:
    explicit Follower(PrefixIndex* index) : index_(index) {}
    rocksdb::Status PutCF(uint32_t family, const rocksdb::Slice& key,
                          const rocksdb::Slice& /*value*/) override {
      if (IsPrefixKey(family, key)) index_->Add(TenantOf(key), HashOf(key));
      return rocksdb::Status::OK();
    }
    rocksdb::Status DeleteCF(uint32_t family, const rocksdb::Slice& key) override {
      if (IsPrefixKey(family, key)) index_->Remove(TenantOf(key), HashOf(key));
      return rocksdb::Status::OK();
    }
    rocksdb::Status MergeCF(uint32_t /*family*/, const rocksdb::Slice& /*key*/,
                            const rocksdb::Slice& /*value*/) override {
      return rocksdb::Status::OK();
    }

   private:
    static bool IsPrefixKey(uint32_t family, const rocksdb::Slice& key) {
      return family == 0 && key.size() > 2 && key[0] == static_cast<char>(KeyKind::kPrefix) &&
             key[1] == '/';
    }
    static std::string TenantOf(const rocksdb::Slice& key) {
      return std::string(KeyTenant({key.data(), key.size()}));
    }
    static uint64_t HashOf(const rocksdb::Slice& key) {
      return PrefixKeyHash({key.data(), key.size()});
    }
    PrefixIndex* const index_;
  };
  Follower follower(&prefix_index_);
  const rocksdb::Status followed = batch->Iterate(&follower);
  assert(followed.ok());  // it is our own, and durable now
  (void)followed;
  return absl::OkStatus();
}

absl::StatusOr<PrefixMatch> RocksDbStore::FindPrefix(const std::string& tenant,
                                                     const PrefixQuery& query) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  std::vector<uint64_t> hashes = ProperPrefixHashes(query.identity, query.tokens);
  for (uint64_t& hash : hashes) hash &= options_.prefix_hash_mask;
  PrefixMatch match;
  size_t num_candidates = 0;
  const RocksDbSnapshot snapshot(database_->db());
  size_t position = prefix_index_.LongestBelow(tenant, hashes, hashes.size());
  for (; position > 0; position = prefix_index_.LongestBelow(tenant, hashes, position)) {
    const std::string prefix = PrefixKey(tenant, hashes[position], "");
    // Newest first. Ids are of letters, digits and '_'.
    RocksDbRange range(database_->db(), prefix, prefix + '\x7f', snapshot.get());
    for (range.iterator().SeekToLast(); range.iterator().Valid(); range.iterator().Prev()) {
      if (++num_candidates > options_.max_prefix_candidates) return match;
      const StateId id(range.key().substr(prefix.size()));
      absl::Status status = TryPrefix(tenant, query, id, position, snapshot.get(), &match);
      if (!status.ok()) return status;
      if (!match.id.empty()) return match;
    }
    if (absl::Status status = range.status(); !status.ok()) return status;
  }
  return match;
}

absl::Status RocksDbStore::TryPrefix(const std::string& tenant, const PrefixQuery& query,
                                     const StateId& id, uint64_t position,
                                     const rocksdb::Snapshot* snapshot, PrefixMatch* match) {
  if (std::find(query.skip.begin(), query.skip.end(), id) != query.skip.end()) {
    return absl::OkStatus();
  }
  PrefixWalk walk(query, position);
  for (StateId next = id;;) {
    const auto stored = ReadManifest(tenant, next, snapshot, ManifestPart::kAll);
    if (absl::IsDataLoss(stored.status()) || absl::IsUnimplemented(stored.status())) {
      // A fault like any damage, but the prompt can do without the state.
      if (events_ != nullptr) events_->OnFault(stored.status());
      match->damaged.push_back(id);
      return absl::OkStatus();
    }
    if (!stored.ok()) return stored.status();
    if (!stored->has_value()) return absl::OkStatus();
    const StateManifest& manifest = (*stored)->manifest;
    if (next == id) {
      absl::StatusOr<bool> is_live = IsLive(manifest, clock_(), snapshot);
      if (!is_live.ok()) return is_live.status();
      if (!*is_live) return absl::OkStatus();
    }
    if (!walk.Visit(manifest)) break;
    next = walk.next_id();
  }
  if (walk.is_complete()) AddCandidate(id, position, walk.inexact(), match);
  return absl::OkStatus();
}

}  // namespace vivarium::statestore
