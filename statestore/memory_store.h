// MemoryStore: the StateStore that keeps everything in memory, in the plainest way: the tests'
// oracle, and a store for runs that need no durability. Operations look at every state.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "statestore/clock.h"
#include "statestore/quota_ledger.h"
#include "statestore/state_codec.h"
#include "statestore/state_id.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

struct MemoryOptions {
  QuotaOptions quotas;
  uint32_t chunk_bytes = kDefaultChunkBytes;  // as if: for the sizes that the durable store has
};

// Thread-safe. Every method does what state_store.h says.
class MemoryStore final : public StateStore {
 public:
  // `events` may be null, else it must outlive the store.
  MemoryStore(Clock clock, StoreEvents* events, MemoryOptions options = {});

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
  absl::Status CheckWritable(uint64_t /*num_bytes*/) override { return absl::OkStatus(); }
  absl::Status Sweep(absl::Time now) override;
  absl::StatusOr<StoreStats> Stats() override;
  // UNIMPLEMENTED: there is nothing to copy to disk.
  absl::StatusOr<ScrubReport> Scrub(const ScrubOptions& options) override;
  absl::Status Compact() override;
  absl::Status Backup(const std::string& directory) override;
  absl::StatusOr<BackupInfo> AddBackup(
      const std::string& directory,
      const std::function<void(uint64_t copied_bytes)>& on_progress) override;

 private:
  struct Entry {
    StateManifest manifest;
    engine::StateBuffer slot;
  };
  struct Tenant {
    std::map<StateId, Entry> states;
    std::map<std::string, Session> sessions;
    std::map<std::string, RequestRecord> requests;
  };

  absl::Status ApplyLocked(const Commit& commit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckCommit(const Tenant& tenant, const Commit& commit, absl::Time now) const;
  absl::Status CheckHeadMove(const Tenant& tenant, const Commit& commit, absl::Time now) const;
  void MoveHead(Tenant& tenant, const Commit& commit, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool IsLive(const Tenant& tenant, const StateManifest& manifest, absl::Time now);
  // The entry of a state whose bytes are there and not expired, or null.
  Entry* FindLive(const std::string& tenant, const StateId& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool HasChild(const Tenant& tenant, const StateId& id);
  void DropState(Tenant& tenant, StateId id);

  const Clock clock_;
  StoreEvents* const events_;
  UlidGenerator etags_;
  const uint32_t chunk_bytes_;
  QuotaLedger quotas_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::statestore
