// A script of saves, forks, deletions, updates, sweeps, loads and a reopening, once for each
// operation that it does on files: with that operation failing. Never a crash, never a wrong
// answer, nothing acknowledged lost; a failed sync stops writing until the store is opened again, a
// full disk only until there is space. VIVARIUM_IO_FAULT_STRIDE=1 tries every operation.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/statestore/faulty_file_system.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using Fault = FaultyFileSystem::Fault;

bool IsAllowed(const absl::Status& status) {
  return status.ok() || absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
}

class FaultScript {
 public:
  FaultScript() {
    options_ = SmallOptions();
    options_.write_buffer_bytes = 64 << 10;
    options_.chunk_bytes = kMixedChunkBytes;
    options_.min_file_bytes = kMixedFileBytes;
    options_.env = faulty_.env.get();
  }

  int num_stopped = 0;  // a full disk that only opening again got over

  // False when the script was over before the `countdown`-th operation.
  bool Run(Fault fault, int countdown) {
    Open();
    EXPECT_NE(store_, nullptr);
    Save(1, "s");  // surely there
    faulty_.system->Arm(fault, countdown);
    Act();
    const bool has_struck = faulty_.system->has_struck();
    const bool has_failed_a_sync = faulty_.system->has_failed_a_sync();
    faulty_.system->Heal();
    if (store_ != nullptr && has_failed_a_sync && fault_in_store_) ExpectStoppedForGood();
    if (store_ != nullptr && fault == Fault::kFullDisk && !has_failed_a_sync) ExpectGoesOn();
    store_.reset();
    Open();
    EXPECT_NE(store_, nullptr) << "the store doesn't open after the fault";
    if (store_ == nullptr) return has_struck;
    CheckAll(/*is_well=*/true);
    const absl::StatusOr<ScrubReport> report = store_->Scrub({});
    EXPECT_TRUE(report.ok()) << report.status();
    if (report.ok() && !report->is_sound()) {
      ADD_FAILURE() << "after the fault: "
                    << (report->damaged.empty() ? report->inconsistent[0] : report->damaged[0]);
    }
    EXPECT_TRUE(Save(999, "s"));
    return has_struck;
  }

 private:
  enum class Fate { kThere, kGone, kEither };

  void Open() {
    auto opened = OpenRocksDbStore(directory_.Sub("store"), options_, clock_.AsClock(), &events_);
    EXPECT_TRUE(IsAllowed(opened.status())) << opened.status();
    store_ = opened.ok() ? *std::move(opened) : nullptr;
    fault_in_store_ = false;
  }

  bool Save(uint64_t number, const std::string& session, absl::Status* result = nullptr) {
    SavedState state = MixedSampleState(number);
    state.manifest.session = session;
    Commit commit = CommitOf(state);
    if (!session.empty()) commit.head_move = Commit::HeadMove{session, state.manifest.id, "*"};
    const absl::Status status = store_->Apply(commit);
    EXPECT_TRUE(IsAllowed(status)) << status;
    fates_[number] = status.ok() ? Fate::kThere : Fate::kEither;
    if (!status.ok()) fault_in_store_ = true;
    if (result != nullptr) *result = status;
    return status.ok();
  }

  void Delete(uint64_t number) {
    const absl::Status status = store_->DeleteState(kTenant, SampleId(number));
    EXPECT_TRUE(IsAllowed(status) || absl::IsNotFound(status)) << status;
    if (absl::IsNotFound(status)) {
      EXPECT_NE(fates_[number], Fate::kThere);
      return;
    }
    fates_[number] = status.ok() ? Fate::kGone : Fate::kEither;
    if (!status.ok()) fault_in_store_ = true;
  }

  void Act() {
    for (uint64_t round = 0; round < 2; ++round) {
      for (uint64_t i = 0; i < 12; ++i) Save(10 + round * 100 + i, i % 3 == 0 ? "t" : "");
      CheckAll(false);
      for (uint64_t i = 1; i < 12; i += 3) Delete(10 + round * 100 + i);
      StateUpdate update;
      update.pinned = true;
      const auto updated = store_->UpdateState(kTenant, SampleId(12 + round * 100), update);
      EXPECT_TRUE(IsAllowed(updated.status()) || absl::IsNotFound(updated.status()));
      EXPECT_TRUE(IsAllowed(store_->Sweep(clock_.Now())));
      CheckAll(false);
      if (round == 1) return;
      store_.reset();
      Open();
      if (store_ == nullptr) return;
    }
  }

  // `is_well`: the files can be read, so that nothing is excused.
  void CheckAll(bool is_well) {
    for (const auto& [number, fate] : fates_) {
      const absl::StatusOr<SavedState> found = store_->Load(kTenant, SampleId(number));
      if (!is_well && absl::IsUnavailable(found.status())) continue;
      if (fate == Fate::kThere) {
        EXPECT_TRUE(found.ok()) << number << ": " << found.status();
      }
      if (fate == Fate::kGone) {
        EXPECT_TRUE(absl::IsNotFound(found.status())) << number;
      }
      if (!found.ok()) {
        EXPECT_TRUE(absl::IsNotFound(found.status())) << found.status();
        continue;
      }
      const SavedState expected = MixedSampleState(number);
      EXPECT_EQ(found->manifest.transcript, expected.manifest.transcript);
      EXPECT_EQ(found->manifest.position, expected.manifest.position);
      EXPECT_EQ(std::memcmp(found->slot.data(), expected.slot.data(), expected.slot.size()), 0);
    }
  }

  // The disk is well again, and that changes nothing.
  void ExpectStoppedForGood() {
    for (uint64_t i = 0; i < 2; ++i) {
      absl::Status status;
      Save(900 + i, "", &status);
      EXPECT_TRUE(absl::IsUnavailable(status)) << "a failed sync was forgotten: " << status;
      fates_[900 + i] = Fate::kGone;
    }
    CheckAll(false);
  }

  void ExpectGoesOn() {
    absl::Status status;
    if (!Save(950, "s", &status)) {
      // Only where RocksDB was about to begin a new file of its own.
      EXPECT_TRUE(absl::IsUnavailable(status)) << "with space again: " << status;
      ++num_stopped;
      return;
    }
    for (uint64_t i = 0; i < 5; ++i) EXPECT_TRUE(Save(951 + i, ""));
    EXPECT_TRUE(store_->Sweep(clock_.Now()).ok());
    CheckAll(true);
  }

  FaultyEnv faulty_;
  TemporaryDirectory directory_;
  FakeClock clock_;
  RecordingEvents events_;
  RocksDbOptions options_;
  std::unique_ptr<StateStore> store_;
  std::map<uint64_t, Fate> fates_;
  bool fault_in_store_ = false;  // the open store met one
};

int Stride() {
  const char* wanted = std::getenv("VIVARIUM_IO_FAULT_STRIDE");
  return wanted != nullptr ? std::atoi(wanted) : 41;
}

// Returns how many operations were tried.
int TryEach(const char* name, Fault fault, int* num_stopped) {
  int num_tried = 0;
  for (int countdown = 1, num_misses = 0; num_misses < 2; countdown += Stride()) {
    SCOPED_TRACE(absl::StrCat("operation ", countdown));
    FaultScript script;
    const bool has_struck = script.Run(fault, countdown);
    *num_stopped += script.num_stopped;
    if (has_struck) {
      ++num_tried;
      num_misses = 0;
    } else {
      ++num_misses;
    }
    if (::testing::Test::HasFailure()) break;
  }
  std::cout << name << ": " << num_tried << " operations failed, one run each\n";
  return num_tried;
}

TEST(IoFaults, AnEioOnceIsNeverForgotten) {
  int unused = 0;
  EXPECT_GT(TryEach("EIO once", Fault::kEioOnce, &unused) * Stride(), 100);
}

TEST(IoFaults, AnEioThatStays) {
  int unused = 0;
  EXPECT_GT(TryEach("EIO for good", Fault::kEioForGood, &unused) * Stride(), 100);
}

TEST(IoFaults, AFullDiskIsOverWhenThereIsSpace) {
  int num_stopped = 0;
  const int num_tried = TryEach("full disk", Fault::kFullDisk, &num_stopped);
  EXPECT_GT(num_tried * Stride(), 100);
  EXPECT_LE(num_stopped, num_tried / 4);
  RecordProperty("tried", num_tried);
  RecordProperty("stopped", num_stopped);
  std::cout << "full disk: " << num_stopped << " needed reopening\n";
}

TEST(DiskReserve, BelowItTheStoreIsReadOnlyAndRecoversByItself) {
  FaultyEnv faulty;
  RocksDbOptions options = SmallOptions();
  options.env = faulty.env.get();
  options.disk_reserve_bytes = 1'000'000;
  faulty.system->SetFreeBytes(2'000'000);
  StoreHarness harness(StoreKind::kRocksDb, options);
  const SavedState before = harness.Save(1, "", "s");
  harness.Save(2);
  faulty.system->SetFreeBytes(999'999);
  const SavedState state = SampleState(SampleId(3), 3);
  const absl::Status refused = harness.store().Apply(CommitOf(state));
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), "999999 bytes free")) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "reserve of 1000000")) << refused;
  EXPECT_TRUE(
      absl::IsResourceExhausted(harness.store().UpdateState(kTenant, SampleId(1), {}).status()));
  ExpectSameState(*harness.store().Load(kTenant, SampleId(1)), before);
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(2)).ok());
  EXPECT_TRUE(harness.store().Sweep(harness.clock().Now()).ok());
  EXPECT_EQ(harness.events().num_faults, 0);
  EXPECT_TRUE(harness.store().Stats()->is_read_only);
  faulty.system->SetFreeBytes(2'000'000);
  EXPECT_TRUE(harness.store().Apply(CommitOf(state)).ok());
}

}  // namespace
}  // namespace vivarium::statestore
