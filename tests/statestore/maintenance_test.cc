// Scrubbing, compaction, sets of backups with a restore drill, deletion of damaged states.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "statestore/rocksdb_keys.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using ::testing::SizeIs;

// A state of 1 MiB of numbers that don't repeat.
SavedState LargeState(uint64_t number) {
  constexpr int64_t kRows = 1 << 10;
  SavedState state = SampleState(SampleId(number), number);
  engine::StateLayout& layout = state.manifest.layout;
  layout.slot_bytes = kRows * 16 * 16 * 4;
  layout.parts = {{"layers.0.ssm", kernels::DType::kF32, {kRows, 16, 16}, 0, layout.slot_bytes}};
  state.slot = SampleSlot(layout, number);
  return state;
}

TEST(Scrub, NamesEveryDamagedStateAndCountsTheRest) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 20; ++i) harness.Save(i, i == 1 ? "" : SampleId(i - 1), "s");
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(4)).ok());
  uint64_t num_seen = 0;
  ScrubOptions options;
  options.on_progress = [&](const ScrubReport& report) { num_seen = report.num_states; };
  absl::StatusOr<ScrubReport> report = harness.store().Scrub(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->num_states, 19u);
  EXPECT_EQ(num_seen, 19u);
  EXPECT_EQ(report->num_bytes, harness.store().Stats()->live_bytes);
  EXPECT_EQ(report->num_damaged, 0u);
  harness.Close();
  {
    RawRocksDb raw(harness.directory());
    std::string chunk = raw.Get(ChunkKey(kTenant, SampleId(7), 2), true);
    chunk[40] = static_cast<char>(chunk[40] ^ 1);
    raw.Put(ChunkKey(kTenant, SampleId(7), 2), chunk, true);
    raw.Put(Key(KeyKind::kManifest, kTenant, SampleId(9)), "rotten", false);
  }
  harness.Reopen();
  report = harness.store().Scrub({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->num_states, 19u);
  EXPECT_EQ(report->num_damaged, 2u);
  ASSERT_THAT(report->damaged, SizeIs(2));
  EXPECT_TRUE(absl::StrContains(report->damaged[0].message(), SampleId(7)));
  EXPECT_TRUE(absl::StrContains(report->damaged[1].message(), SampleId(9)));
  EXPECT_EQ(harness.events().num_faults, 2);
  EXPECT_TRUE(absl::IsDataLoss(harness.store().Load(kTenant, SampleId(7)).status()));
}

TEST(Scrub, KeepsToItsRateAndStops) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 10; ++i) harness.Save(i);
  absl::Duration asked = absl::ZeroDuration();
  int num_pauses = 0;
  ScrubOptions options;
  options.bytes_per_second = 1000;
  options.pause = [&](absl::Duration duration) {
    asked = duration;
    return ++num_pauses < 3;
  };
  EXPECT_TRUE(absl::IsCancelled(harness.store().Scrub(options).status()));
  EXPECT_EQ(num_pauses, 3);
  // Three states of 1,312 bytes take 3.9 s at that rate, and nothing was slept.
  EXPECT_GT(asked, absl::Seconds(3));
  EXPECT_LE(asked, absl::Seconds(3.94));
}

TEST(Deletion, ADamagedManifestGoesWithAllThatNamesIt) {
  StoreHarness harness(StoreKind::kRocksDb);
  SavedState state = SampleState(SampleId(2), 2);
  state.manifest.session = "s";
  state.manifest.parent_id = SampleId(1);
  state.manifest.expires = harness.clock().Now() + absl::Hours(1);
  harness.Save(1);
  const StoreStats before = *harness.store().Stats();
  ASSERT_TRUE(harness.store().Apply(CommitOf(state)).ok());
  harness.Close();
  {
    RawRocksDb raw(harness.directory());
    raw.Put(Key(KeyKind::kManifest, kTenant, SampleId(2)), "rotten", false);
  }
  harness.Reopen();
  EXPECT_TRUE(absl::IsDataLoss(harness.store().ListStates(kTenant, {}, 10, "").status()));
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(2)).ok());
  EXPECT_THAT(harness.store().ListStates(kTenant, {}, 10, "")->items, SizeIs(1));
  const StoreStats after = *harness.store().Stats();
  EXPECT_EQ(after.num_states, before.num_states);
  EXPECT_EQ(after.num_manifests, before.num_manifests);
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(1)).ok());
  harness.Close();
  RawRocksDb raw(harness.directory());
  EXPECT_THAT(raw.Keys("", true), ::testing::IsEmpty());
  EXPECT_THAT(raw.Keys("", false), ::testing::ElementsAre("k/default/", "v"));
}

class Compaction : public ::testing::TestWithParam<uint64_t> {};

// Of blob files, and of states that have files of their own.
INSTANTIATE_TEST_SUITE_P(MinFileBytes, Compaction, ::testing::Values(~uint64_t{0}, uint64_t{1}));

TEST_P(Compaction, ASweepGivesBackTheDiskOfWhatWasDeleted) {
  RocksDbOptions options;  // as in earnest: blob files
  options.disk_reserve_bytes = 0;
  options.min_file_bytes = GetParam();
  StoreHarness harness(StoreKind::kRocksDb, options);
  constexpr uint64_t kNumStates = 64;
  for (uint64_t i = 1; i <= kNumStates; ++i) {
    ASSERT_TRUE(harness.store().Apply(CommitOf(LargeState(i))).ok());
  }
  for (uint64_t i = 1; i <= kNumStates; i += 2) {
    ASSERT_TRUE(harness.store().DeleteState(kTenant, SampleId(i)).ok());
  }
  ASSERT_TRUE(harness.store().Sweep(harness.clock().Now()).ok());
  const StoreStats stats = *harness.store().Stats();
  EXPECT_EQ(stats.num_states, kNumStates / 2);
  EXPECT_LT(static_cast<double>(stats.disk_bytes), 1.2 * static_cast<double>(stats.live_bytes));
  for (uint64_t i = 2; i <= kNumStates; i += 2) {
    const absl::StatusOr<SavedState> found = harness.store().Load(kTenant, SampleId(i));
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(std::memcmp(found->slot.data(), LargeState(i).slot.data(), found->slot.size()), 0);
  }
}

// The drill: backups in between, a restore of each, every state verified and compared.
TEST(BackupSet, EveryBackupComesBackWhole) {
  StoreHarness harness(StoreKind::kRocksDb);
  const TemporaryDirectory parent;
  const std::string backups = parent.Sub("backups");
  constexpr uint32_t kNumBackups = 3;
  constexpr uint64_t kStatesEach = 15;
  for (uint32_t backup = 0; backup < kNumBackups; ++backup) {
    for (uint64_t i = 1; i <= kStatesEach; ++i) harness.Save(backup * kStatesEach + i, "", "s");
    if (backup > 0) {
      EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(backup)).ok());
    }
    ASSERT_TRUE(harness.store().AddBackup(backups, nullptr).ok());
  }
  const absl::StatusOr<std::vector<BackupInfo>> infos = ListBackups(backups);
  ASSERT_TRUE(infos.ok()) << infos.status();
  ASSERT_THAT(*infos, SizeIs(kNumBackups));
  for (uint32_t backup = 0; backup < kNumBackups; ++backup) {
    const std::string directory = parent.Sub("restored" + std::to_string(backup));
    ASSERT_TRUE(RestoreBackup(backups, (*infos)[backup].id, directory).ok());
    EXPECT_TRUE(absl::IsAlreadyExists(RestoreBackup(backups, 0, directory)));
    auto restored = OpenRocksDbStore(directory, SmallOptions(), absl::Now, nullptr);
    ASSERT_TRUE(restored.ok()) << restored.status();
    const absl::StatusOr<ScrubReport> report = (*restored)->Scrub({});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->num_damaged, 0u);
    EXPECT_EQ(report->num_states, (backup + 1) * kStatesEach - backup);
    for (uint64_t i = 1 + backup; i <= (backup + 1) * kStatesEach; ++i) {
      const absl::StatusOr<SavedState> found = (*restored)->Load(kTenant, SampleId(i));
      ASSERT_TRUE(found.ok()) << found.status();
      const SavedState expected = SampleState(SampleId(i), i);
      EXPECT_EQ(std::memcmp(found->slot.data(), expected.slot.data(), expected.slot.size()), 0);
    }
    EXPECT_EQ((*restored)->GetSession(kTenant, "s")->head, SampleId((backup + 1) * kStatesEach));
  }
  EXPECT_FALSE(RestoreBackup(parent.Sub("nothing"), 0, parent.Sub("x")).ok());
}

// As in earnest, with blob files: what a backup has, the next ones share.
TEST(BackupSet, TheNextOneCostsWhatIsNewAndOneIsMadeAtATime) {
  RocksDbOptions options;
  options.disk_reserve_bytes = 0;
  StoreHarness harness(StoreKind::kRocksDb, options);
  const TemporaryDirectory parent;
  const std::string backups = parent.Sub("backups");
  for (uint64_t i = 1; i <= 16; ++i) {
    ASSERT_TRUE(harness.store().Apply(CommitOf(LargeState(i))).ok());
  }
  absl::Status beside;
  uint64_t copied_bytes = 0;
  const absl::StatusOr<BackupInfo> first =
      harness.store().AddBackup(backups, [&](uint64_t num_bytes) {
        copied_bytes = num_bytes;
        if (!beside.ok()) return;  // once is enough
        beside = harness.store().AddBackup(parent.Sub("other"), nullptr).status();
      });
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(absl::IsAborted(beside)) << beside;
  EXPECT_TRUE(absl::StrContains(beside.message(), "another one is being made"));
  EXPECT_EQ(first->id, 1u);
  EXPECT_GT(first->num_bytes, uint64_t{16} << 20);
  EXPECT_GE(first->new_bytes, first->num_bytes);
  EXPECT_GT(copied_bytes, uint64_t{8} << 20);
  ASSERT_TRUE(harness.store().Apply(CommitOf(LargeState(17))).ok());
  const absl::StatusOr<BackupInfo> second = harness.store().AddBackup(backups, nullptr);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->id, 2u);
  EXPECT_GT(second->num_bytes, uint64_t{17} << 20);
  EXPECT_LT(second->new_bytes, uint64_t{2} << 20);
  ASSERT_TRUE(RestoreBackup(backups, 2, parent.Sub("restored")).ok());
  auto restored = OpenRocksDbStore(parent.Sub("restored"), options, absl::Now, nullptr);
  ASSERT_TRUE(restored.ok()) << restored.status();
  const absl::StatusOr<ScrubReport> report = (*restored)->Scrub({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->is_sound());
  EXPECT_EQ(report->num_states, 17u);
}

}  // namespace
}  // namespace vivarium::statestore
