// RocksDbStore: the implementation behind OpenRocksDbStore. Its parts: rocksdb_store.cc (opening,
// manifests), rocksdb_load.cc (bytes), rocksdb_commit.cc (Apply), rocksdb_list.cc,
// rocksdb_update.cc, rocksdb_sweep.cc, rocksdb_maintenance.cc (compaction, backups),
// rocksdb_scrub.cc.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "statestore/commit_locks.h"
#include "statestore/prefix_index.h"
#include "statestore/quota_ledger.h"
#include "statestore/rocksdb_counters.h"
#include "statestore/rocksdb_database.h"
#include "statestore/rocksdb_keys.h"
#include "statestore/rocksdb_store.h"
#include "statestore/state_cache.h"
#include "statestore/state_id.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

// How a commit goes:
//   1. its ids are held, and it is checked for the first time, so that a stale one costs nothing;
//      the quota of its states is taken;
//   2. per state an intent, then the chunks, both unsynced in the log; of a large state the intent,
//      synced, then the chunks as a file that the database takes;
//   3. under the locks of its session and request it is checked for good, and one synced batch
//      writes manifests, indexes, head and request, and takes the intents away;
//   4. its quota becomes what the states really take, or is given back.
// The log keeps the order, and files are durable before the batch: whoever finds the batch after a
// crash finds the chunks. An intent that
// survives without its batch names the orphans; Open and Sweep remove them.
//
// Deletion looks at descendants and sessions of any name: it holds all locks, for one state at a
// time.
class RocksDbStore final : public StateStore {
 public:
  RocksDbStore(std::string directory, const RocksDbOptions& options, Clock clock,
               StoreEvents* events, std::unique_ptr<RocksDbDatabase> database)
      : directory_(std::move(directory)),
        options_(options),
        clock_(clock),
        events_(events),
        etags_(std::move(clock)),
        prefix_index_(options.max_prefix_hashes),
        quotas_(options.quotas),
        cache_(options.state_cache_bytes),
        database_(std::move(database)) {}

  // Once, before anything else: counts requests, removes what unfinished work left.
  absl::Status Recover();

  absl::Status Apply(const Commit& commit) override;
  absl::StatusOr<SavedState> Load(const std::string& tenant, const StateId& id) override;
  absl::StatusOr<StateManifest> GetManifest(const std::string& tenant, const StateId& id) override;
  absl::StatusOr<Page<StateManifest>> ListStates(const std::string& tenant,
                                                 const StateFilter& filter, int page_size,
                                                 const std::string& page_token) override;
  absl::StatusOr<StateManifest> UpdateState(const std::string& tenant, const StateId& id,
                                            const StateUpdate& update) override;
  absl::Status DeleteState(const std::string& tenant, const StateId& id) override;
  absl::Status VerifyState(const std::string& tenant, const StateId& id) override;
  absl::StatusOr<std::vector<StateManifest>> Ancestry(const std::string& tenant, const StateId& id,
                                                      size_t limit) override;
  absl::StatusOr<PrefixMatch> FindPrefix(const std::string& tenant,
                                         const PrefixQuery& query) override;
  absl::StatusOr<Session> GetSession(const std::string& tenant, const std::string& name) override;
  absl::StatusOr<Page<Session>> ListSessions(const std::string& tenant, int page_size,
                                             const std::string& page_token) override;
  absl::Status DeleteSession(const std::string& tenant, const std::string& name,
                             const std::string& expected_etag) override;
  absl::StatusOr<RequestRecord> GetRequest(const std::string& tenant,
                                           const std::string& request_id) override;
  absl::StatusOr<StateReservation> Reserve(const std::string& tenant, uint64_t num_states,
                                           const engine::StateLayout& layout,
                                           StateCodec codec) override;
  QuotaUsage GetQuota(const std::string& tenant) override { return quotas_.Usage(tenant); }
  absl::Status CheckWritable(uint64_t num_bytes) override;
  absl::Status Sweep(absl::Time now) override;
  absl::StatusOr<StoreStats> Stats() override;
  absl::StatusOr<ScrubReport> Scrub(const ScrubOptions& options) override;
  absl::Status Compact() override;
  absl::Status Backup(const std::string& directory) override;
  absl::StatusOr<BackupInfo> AddBackup(
      const std::string& directory,
      const std::function<void(uint64_t copied_bytes)>& on_progress) override;

 private:
  using TenantAndId = std::pair<std::string, std::string>;

  // Keeps ids of states from every other writer and from the sweep of orphans, while it lives.
  class IdHold;

  // --- reading (rocksdb_store.cc). `snapshot` may be null: the newest. ---
  // Nothing where there is no manifest. Any malformed one is DATA_LOSS, naming it.
  absl::StatusOr<std::optional<StoredManifest>> ReadManifest(const std::string& tenant,
                                                             const StateId& id,
                                                             const rocksdb::Snapshot* snapshot,
                                                             ManifestPart part);
  absl::StatusOr<StoredManifest> DecodeStored(const std::string& tenant, std::string_view id,
                                              std::string_view bytes, ManifestPart part) const;
  absl::StatusOr<bool> HasKeyIn(const std::string& prefix, const rocksdb::Snapshot* snapshot);
  absl::StatusOr<bool> IsLive(const StateManifest& manifest, absl::Time now,
                              const rocksdb::Snapshot* snapshot);
  // NOT_FOUND where the bytes are dropped or expired.
  absl::StatusOr<StoredManifest> ReadLive(const std::string& tenant, const StateId& id,
                                          const rocksdb::Snapshot* snapshot, ManifestPart part);
  absl::StatusOr<StateManifest> Shown(StoredManifest stored, absl::Time now,
                                      const rocksdb::Snapshot* snapshot);
  absl::StatusOr<std::optional<Session>> ReadSession(const std::string& tenant,
                                                     const std::string& name,
                                                     const rocksdb::Snapshot* snapshot);
  absl::StatusOr<std::optional<RequestRecord>> ReadRequest(const std::string& tenant,
                                                           const std::string& request_id);
  // The bytes, from disk. What is damaged there leaves the cache too: where a state comes from must
  // not decide what is answered.
  // --- loading (rocksdb_load.cc) ---
  absl::Status ReadChunk(const StoredManifest& stored, uint32_t chunk_index,
                         const rocksdb::Snapshot* snapshot, engine::StateBuffer* slot);
  absl::StatusOr<engine::StateBuffer> ReadSlot(const StoredManifest& stored,
                                               const rocksdb::Snapshot* snapshot);
  // Verified; kHost: from the cache where it is there, kDisk: from disk, past the cache.
  absl::StatusOr<SavedState> LoadFrom(LoadTier nearest, const std::string& tenant,
                                      const StateId& id);
  // Of a durable commit.
  void CacheSaved(const Commit& commit, const std::vector<ChunkTable>& tables);

  // --- committing (rocksdb_commit.cc) ---
  absl::Status ApplyValid(const Commit& commit, uint64_t num_bytes);
  // Checks, writes, and checks again; `used`: what its states then take.
  absl::Status WriteCommit(const Commit& commit, Quota* used, bool* is_new_request);
  Quota MostUsed(const Commit& commit) const;
  absl::Status WriteChunks(const Commit& commit, std::vector<ChunkTable>* tables);
  // Those of a small state, to the log.
  absl::Status LogChunksOf(const Commit::NewState& state, ChunkTable* table);
  // Those of the large states, to files. False, and nothing written: there are no large ones, or
  // the database takes no files now.
  absl::StatusOr<bool> WriteChunkFiles(const Commit& commit, std::vector<ChunkTable>* tables);
  absl::Status CheckTaken(const Commit::NewState& state);
  absl::Status WriteChunkFile(const Commit::NewState& state, ChunkFile* file, ChunkTable* table);
  bool HasFileOfItsOwn(const Commit::NewState& state) const {
    return state.slot->size() >= options_.min_file_bytes;
  }
  // Everything a commit must be checked for; fills `batch` on the way. `tables` may be empty for a
  // first check. `is_new_request`: no record lies under its id yet, not even an expired one.
  absl::Status PlanCommit(const Commit& commit, const std::vector<ChunkTable>& tables,
                          rocksdb::WriteBatch* batch, bool* is_new_request);
  absl::Status PlanStates(const Commit& commit, const std::vector<ChunkTable>& tables,
                          Counters* difference, rocksdb::WriteBatch* batch);
  absl::Status PlanRequest(const Commit& commit, rocksdb::WriteBatch* batch, bool* is_new_request);
  absl::Status PlanHeadMove(const Commit& commit, Counters* difference, rocksdb::WriteBatch* batch);
  // Drops the bytes of what the commit thins.
  absl::Status PlanThinning(const Commit& commit, Counters* difference, rocksdb::WriteBatch* batch);
  absl::StatusOr<bool> IsThinned(const Commit& commit, const StateManifest& manifest);
  void DiscardChunks(const std::string& tenant, const StateId& id, uint64_t num_chunks);
  absl::Status TrimRequests(const std::string& tenant);

  // --- listing (rocksdb_list.cc) ---
  // Where the states that a filter may take are named, newest last.
  static std::string CandidatesPrefix(const std::string& tenant, const StateFilter& filter);
  // That an index names.
  absl::StatusOr<StoredManifest> ReadListed(const std::string& tenant, const StateId& id,
                                            const rocksdb::Snapshot* snapshot);

  // --- removing (rocksdb_sweep.cc) ---
  // Drops the bytes of a live state and what then nobody needs. Under LockAll.
  absl::Status DropState(const StoredManifest& stored, bool sync);
  // Everything that names its bytes. The manifest is the caller's.
  absl::Status PlanDrop(const StoredManifest& stored, rocksdb::WriteBatch* batch,
                        Counters* difference);
  static void PutDropped(const StoredManifest& stored, rocksdb::WriteBatch* batch);
  absl::Status PlanForgetHeads(const std::string& tenant, const StateId& id,
                               rocksdb::WriteBatch* batch);
  // Removes the manifest `id`, and its ancestors', as far as they are dropped and childless. One
  // batch takes kMaxRemovedPerBatch; the rest is remembered in it and follows.
  absl::Status RemoveChain(const std::string& tenant, StateId id, StateId removed_child,
                           rocksdb::WriteBatch* batch, Counters* difference, StateId* rest);
  absl::Status FinishRemovals(const std::string& tenant, StateId id);
  absl::StatusOr<bool> HasOtherChild(const std::string& tenant, const StateId& id,
                                     const StateId& child);
  absl::Status SweepExpired(absl::Time now, uint64_t* num_expired);
  absl::Status SweepExpiredOf(const std::string& tenant, absl::Time now, uint64_t* num_expired);
  absl::Status DropIfExpired(const std::string& tenant, const StateId& id, absl::Time now,
                             uint64_t* num_expired);
  absl::Status SweepRequests(absl::Time now);
  absl::Status SweepRequestsOf(const std::string& tenant, const std::string& end,
                               size_t max_removed, size_t* num_removed);
  absl::Status SweepOrphans(uint64_t* num_orphan_chunks);
  absl::Status SweepGarbage();
  absl::StatusOr<Counters> CountersOf(const std::string& tenant);
  absl::StatusOr<Counters> TotalCounters();
  absl::Status CompactIfWorthwhile();
  // Of a state whose manifest can't be read any more: everything that names it. Under LockAll.
  absl::Status ForgetDamaged(const std::string& tenant, const StateId& id);

  // --- states by their tokens (rocksdb_prefix.cc) ---
  absl::Status LoadPrefixIndex();
  // For a new state whose parent is among `earlier`, of the same commit, or stored. Under the
  // commit's locks.
  std::optional<uint64_t> MakePrefixHash(const Commit::NewState& state,
                                         std::span<const StateManifest> earlier);
  // Of a manifest with a hash: what it is found under.
  uint64_t IndexedHash(const StateManifest& manifest) const {
    return *manifest.prefix_hash & options_.prefix_hash_mask;
  }
  // Writes; then the index in memory follows the batch's keys of prefixes.
  absl::Status WriteIndexed(rocksdb::WriteBatch* batch, bool sync);
  // Takes the state into `match` if it has the first `position` tokens of the prompt.
  absl::Status TryPrefix(const std::string& tenant, const PrefixQuery& query, const StateId& id,
                         uint64_t position, const rocksdb::Snapshot* snapshot, PrefixMatch* match);

  // --- looking after everything (rocksdb_maintenance.cc, rocksdb_scrub.cc) ---
  class ScrubPass;
  absl::Status ScrubStates(ScrubPass* pass);
  absl::Status ScrubKeys(ScrubPass* pass);
  absl::Status ScrubFiles(ScrubPass* pass);
  // The first state of `tenant` after `last`; "" = there is none.
  absl::StatusOr<StateId> NextState(const std::string& tenant, const StateId& last);
  // Calls `visit(tenant)` for every tenant that has keys of this kind.
  template <typename Visit>
  absl::Status ForEachTenant(KeyKind kind, Visit visit);

  const std::string directory_;
  const RocksDbOptions options_;
  const Clock clock_;
  StoreEvents* const events_;
  UlidGenerator etags_;
  PrefixIndex prefix_index_;
  QuotaLedger quotas_;
  StateCache cache_;
  const std::unique_ptr<RocksDbDatabase> database_;
  CommitLocks locks_;
  absl::Mutex mutex_;
  std::set<TenantAndId> held_ids_ ABSL_GUARDED_BY(mutex_);
  bool is_backing_up_ ABSL_GUARDED_BY(mutex_) = false;                  // AddBackup
  std::map<std::string, size_t> num_requests_ ABSL_GUARDED_BY(mutex_);  // by tenant
};

class RocksDbStore::IdHold {
 public:
  explicit IdHold(RocksDbStore* store) : store_(store) {}
  ~IdHold();
  IdHold(const IdHold&) = delete;
  IdHold& operator=(const IdHold&) = delete;

  // False, and nothing changed, when somebody else has it.
  bool Add(const std::string& tenant, const StateId& id);

 private:
  RocksDbStore* const store_;
  std::vector<TenantAndId> held_;
};

template <typename Visit>
absl::Status RocksDbStore::ForEachTenant(KeyKind kind, Visit visit) {
  std::string begin = {static_cast<char>(kind), '/'};
  const std::string end = PrefixEnd(begin);
  while (true) {
    std::string tenant;
    {
      RocksDbRange range(database_->db(), begin, end, nullptr);
      range.iterator().SeekToFirst();
      if (!range.iterator().Valid()) return range.status();
      tenant = std::string(KeyTenant(range.key()));
    }
    if (absl::Status status = visit(tenant); !status.ok()) return status;
    begin = PrefixEnd(KeyPrefix(kind, tenant));
  }
}

// What the files under `directory` occupy.
uint64_t DiskBytes(const std::string& directory);

// Whatever is wrong with bytes that we wrote ourselves is a loss of data, unless they are newer
// than this program.
absl::Status StoredDataError(const absl::Status& status, const std::string& what);

// A state's name in the cache.
inline std::string CacheKey(const std::string& tenant, const StateId& id) {
  return tenant + '/' + id;
}

inline rocksdb::Slice AsSlice(std::string_view bytes) { return {bytes.data(), bytes.size()}; }

}  // namespace vivarium::statestore
