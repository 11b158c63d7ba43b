// RocksDbStore: the bytes of states, from host memory or from disk, verified.
#include <atomic>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {
namespace {

// From this size on a slot is read by two threads: one waits for the disk, or copies out of its
// cache, while the other checks and unpacks.
constexpr uint64_t kMinSharedBytes = uint64_t{8} << 20;

}  // namespace

absl::Status RocksDbStore::ReadChunk(const StoredManifest& stored, uint32_t chunk_index,
                                     const rocksdb::Snapshot* snapshot, engine::StateBuffer* slot) {
  const StateManifest& manifest = stored.manifest;
  rocksdb::PinnableSlice chunk;
  absl::Status status =
      database_->GetChunk(ChunkKey(manifest.tenant, manifest.id, chunk_index), snapshot, &chunk);
  if (absl::IsUnavailable(status)) return status;  // the disk could not be read: try again
  if (status.ok()) status = DecodeChunk({chunk.data(), chunk.size()}, stored, chunk_index, slot);
  if (status.ok()) return status;
  return StoredDataError(status, absl::StrCat("state ", manifest.id, ", chunk ", chunk_index,
                                              " of ", stored.chunks.checksums.size()));
}

absl::StatusOr<engine::StateBuffer> RocksDbStore::ReadSlot(const StoredManifest& stored,
                                                           const rocksdb::Snapshot* snapshot) {
  const StateManifest& manifest = stored.manifest;
  auto slot = engine::StateBuffer::ForOverwrite(manifest.layout.slot_bytes);
  const auto num_chunks = static_cast<uint32_t>(stored.chunks.checksums.size());
  std::atomic<uint32_t> next_chunk = 0;
  struct Failure {
    uint32_t chunk_index = std::numeric_limits<uint32_t>::max();
    absl::Status status;
  };
  const auto read_some = [&](Failure* failure) {
    for (uint32_t i = next_chunk++; i < num_chunks; i = next_chunk++) {
      absl::Status status = ReadChunk(stored, i, snapshot, &slot);
      if (status.ok()) continue;
      *failure = {i, std::move(status)};
      next_chunk = num_chunks;
    }
  };
  Failure own, others;
  std::thread other;
  if (slot.size() >= kMinSharedBytes) {
    try {
      other = std::thread([&] { read_some(&others); });
    } catch (const std::system_error&) {  // no more threads: alone, then
    }
  }
  read_some(&own);
  if (other.joinable()) other.join();
  // Chunks were taken in order: the first one that failed is among these.
  Failure& first = own.chunk_index < others.chunk_index ? own : others;
  if (first.status.ok()) return slot;
  if (!absl::IsUnavailable(first.status)) cache_.Erase(CacheKey(manifest.tenant, manifest.id));
  return std::move(first.status);
}

absl::StatusOr<SavedState> RocksDbStore::LoadFrom(LoadTier nearest, const std::string& tenant,
                                                  const StateId& id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  // A deletion in between must not look like lost chunks.
  const RocksDbSnapshot snapshot(database_->db());
  absl::StatusOr<StoredManifest> stored = ReadLive(tenant, id, snapshot.get(), ManifestPart::kAll);
  if (!stored.ok()) return stored.status();
  const bool may_be_cached = nearest == LoadTier::kHost && cache_.keeps_anything();
  const std::string key = CacheKey(tenant, id);
  if (may_be_cached) {
    absl::StatusOr<engine::StateBuffer> cached = cache_.Get(key, stored->chunks.checksums);
    if (cached.ok()) {
      return SavedState{std::move(stored->manifest), *std::move(cached), LoadTier::kHost};
    }
    if (absl::IsDataLoss(cached.status()) && events_ != nullptr) events_->OnFault(cached.status());
  }
  absl::StatusOr<engine::StateBuffer> slot = ReadSlot(*stored, snapshot.get());
  if (!slot.ok()) return slot.status();
  if (may_be_cached && cache_.Fits(slot->size())) {
    cache_.Put(key, std::move(stored->chunks.checksums), CopyOf(*slot));
  }
  return SavedState{std::move(stored->manifest), *std::move(slot)};
}

absl::StatusOr<SavedState> RocksDbStore::Load(const std::string& tenant, const StateId& id) {
  const absl::Time begin = absl::Now();
  absl::StatusOr<SavedState> state = LoadFrom(LoadTier::kHost, tenant, id);
  if (events_ != nullptr) {
    events_->OnLoad(absl::Now() - begin, state.ok() ? state->manifest.stored_bytes : 0,
                    state.ok() ? state->tier : LoadTier::kDisk, state.status());
  }
  return state;
}

absl::Status RocksDbStore::VerifyState(const std::string& tenant, const StateId& id) {
  return LoadFrom(LoadTier::kDisk, tenant, id).status();
}

}  // namespace vivarium::statestore
