// A store of either kind on a fake clock, for tests that both must pass.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "statestore/rocksdb_store.h"
#include "statestore/state_store.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {

enum class StoreKind {
  kMemory,
  kRocksDb,
  kCached,  // RocksDb with a few states in host memory
};
// For names of tests.
std::string NameOf(StoreKind kind);

class RecordingEvents final : public StoreEvents {
 public:
  void OnCommit(absl::Duration latency, uint64_t bytes, const absl::Status& status) override;
  void OnLoad(absl::Duration latency, uint64_t bytes, LoadTier tier,
              const absl::Status& status) override;
  void OnFault(const absl::Status& status) override;
  void OnSweep(uint64_t num_expired, uint64_t num_orphan_chunks) override;

  std::atomic<int> num_commits{0}, num_failed_commits{0}, num_loads{0}, num_faults{0};
  std::atomic<int> num_host_loads{0};  // of num_loads
  std::atomic<uint64_t> committed_bytes{0}, num_expired{0}, num_orphan_chunks{0};
};

// Small chunks, a small log: several chunks a state, and flushes on the way.
RocksDbOptions SmallOptions();

class StoreHarness {
 public:
  explicit StoreHarness(StoreKind kind, RocksDbOptions options = SmallOptions());

  StateStore& store() { return *store_; }
  FakeClock& clock() { return clock_; }
  RecordingEvents& events() { return events_; }
  std::string directory() const { return directory_.Sub("store"); }
  // Closes and opens again; nothing for the in-memory store.
  void Reopen();
  void Close() { store_.reset(); }

  // Commits a sample state and expects OK. `session`: moves its head, whatever it was.
  SavedState Save(uint64_t number, const StateId& parent_id = "", const std::string& session = "");

 private:
  const StoreKind kind_;
  RocksDbOptions options_;
  FakeClock clock_;
  RecordingEvents events_;
  TemporaryDirectory directory_;
  std::unique_ptr<StateStore> store_;
};

}  // namespace vivarium::statestore
