#include "tests/statestore/store_harness.h"

#include <utility>

#include "statestore/memory_store.h"

namespace vivarium::statestore {

constexpr uint64_t kSmallCacheBytes = 8 << 10;  // four sample states

void RecordingEvents::OnCommit(absl::Duration /*latency*/, uint64_t bytes,
                               const absl::Status& status) {
  ++(status.ok() ? num_commits : num_failed_commits);
  if (status.ok()) committed_bytes += bytes;
}

void RecordingEvents::OnLoad(absl::Duration /*latency*/, uint64_t /*bytes*/, LoadTier tier,
                             const absl::Status& /*status*/) {
  ++num_loads;
  num_host_loads += tier == LoadTier::kHost;
}

void RecordingEvents::OnFault(const absl::Status& /*status*/) { ++num_faults; }

void RecordingEvents::OnSweep(uint64_t expired, uint64_t orphan_chunks) {
  num_expired += expired;
  num_orphan_chunks += orphan_chunks;
}

std::string NameOf(StoreKind kind) {
  switch (kind) {
    case StoreKind::kMemory:
      return "Memory";
    case StoreKind::kRocksDb:
      return "RocksDb";
    case StoreKind::kCached:
      return "Cached";
  }
  return "unknown";
}

RocksDbOptions SmallOptions() {
  RocksDbOptions options;
  options.chunk_bytes = 256;
  options.disk_reserve_bytes = 0;
  options.write_buffer_bytes = 256 << 10;
  return options;
}

StoreHarness::StoreHarness(StoreKind kind, RocksDbOptions options)
    : kind_(kind), options_(options) {
  if (kind == StoreKind::kCached) options_.state_cache_bytes = kSmallCacheBytes;
  if (kind == StoreKind::kMemory) {
    store_ = std::make_unique<MemoryStore>(clock_.AsClock(), &events_,
                                           MemoryOptions{options_.quotas, options_.chunk_bytes});
  } else {
    Reopen();
  }
}

void StoreHarness::Reopen() {
  if (kind_ == StoreKind::kMemory) return;
  store_.reset();
  absl::StatusOr<std::unique_ptr<StateStore>> opened =
      OpenRocksDbStore(directory(), options_, clock_.AsClock(), &events_);
  if (!opened.ok()) {
    ADD_FAILURE() << opened.status();
    std::abort();
  }
  store_ = *std::move(opened);
}

SavedState StoreHarness::Save(uint64_t number, const StateId& parent_id,
                              const std::string& session) {
  SavedState state = SampleState(SampleId(number), number);
  state.manifest.parent_id = parent_id;
  state.manifest.session = session;
  Commit commit = CommitOf(state);
  if (!session.empty()) commit.head_move = Commit::HeadMove{session, state.manifest.id, "*"};
  const absl::Status status = store_->Apply(commit);
  EXPECT_TRUE(status.ok()) << status;
  return state;
}

}  // namespace vivarium::statestore
