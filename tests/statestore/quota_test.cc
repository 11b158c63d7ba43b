// Quotas, asked of both stores: at the limit and one past it, reservations, what frees quota, many
// threads at once, opening again, failed commits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "statestore/rocksdb_keys.h"
#include "statestore/state_codec.h"
#include "tests/statestore/faulty_file_system.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using ::testing::HasSubstr;

// Of a sample state in chunks of 256 bytes, raw: 1,152 bytes in 5 chunks.
constexpr uint64_t kStateBytes = 1152 + 5 * kEnvelopeBytes;

RocksDbOptions WithQuota(uint64_t num_states, uint64_t num_bytes) {
  RocksDbOptions options = SmallOptions();
  options.quotas.each_tenant = {num_states, num_bytes};
  return options;
}

absl::Status Put(StateStore& store, uint64_t number, StateReservation* reservation = nullptr,
                 StateCodec codec = StateCodec::kRaw) {
  SavedState state = SampleState(SampleId(number), number);
  state.manifest.codec = codec;
  Commit commit = CommitOf(state);
  commit.reservation = reservation;
  return store.Apply(commit);
}

absl::StatusOr<StateReservation> Reserve(StateStore& store, uint64_t num_states,
                                         StateCodec codec = StateCodec::kRaw) {
  return store.Reserve(kTenant, num_states, SampleLayout(), codec);
}

void ExpectUsage(StateStore& store, const Quota& used, const Quota& reserved) {
  const QuotaUsage usage = store.GetQuota(kTenant);
  EXPECT_EQ(usage.used.num_states, used.num_states);
  EXPECT_EQ(usage.used.num_bytes, used.num_bytes);
  EXPECT_EQ(usage.reserved.num_states, reserved.num_states);
  EXPECT_EQ(usage.reserved.num_bytes, reserved.num_bytes);
}

class QuotaSuite : public ::testing::TestWithParam<StoreKind> {};

TEST_P(QuotaSuite, StatesUpToTheLimitAndNotOneMore) {
  StoreHarness harness(GetParam(), WithQuota(3, 0));
  for (uint64_t i = 1; i <= 3; ++i) EXPECT_TRUE(Put(harness.store(), i).ok());
  const absl::Status refused = Put(harness.store(), 4);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("quota of tenant default: 3 states stored, 0 reserved, 1 more asked for, "
                        "at most 3"));
  const std::optional<QuotaExceeded> exceeded = QuotaExceededOf(refused);
  ASSERT_TRUE(exceeded.has_value());
  EXPECT_EQ(exceeded->tenant, kTenant);
  EXPECT_EQ(exceeded->what, "states");
  EXPECT_EQ(exceeded->used, 3u);
  EXPECT_EQ(exceeded->asked, 1u);
  EXPECT_EQ(exceeded->limit, 3u);
  EXPECT_TRUE(absl::IsNotFound(harness.store().Load(kTenant, SampleId(4)).status()));
  ExpectUsage(harness.store(), {3, 3 * kStateBytes}, {});
  EXPECT_EQ(harness.store().GetQuota(kTenant).num_refusals, 1u);
  // What takes no quota goes on.
  Commit move;
  move.tenant = kTenant;
  move.head_move = Commit::HeadMove{"s", SampleId(1), ""};
  EXPECT_TRUE(harness.store().Apply(move).ok());
}

TEST_P(QuotaSuite, BytesUpToTheLimitAndNotOneMore) {
  {
    StoreHarness harness(GetParam(), WithQuota(0, 3 * kStateBytes));
    for (uint64_t i = 1; i <= 3; ++i) EXPECT_TRUE(Put(harness.store(), i).ok());
    const absl::Status refused = Put(harness.store(), 4);
    ASSERT_TRUE(QuotaExceededOf(refused).has_value()) << refused;
    EXPECT_EQ(QuotaExceededOf(refused)->what, "bytes");
    EXPECT_EQ(QuotaExceededOf(refused)->used, 3 * kStateBytes);
    EXPECT_EQ(QuotaExceededOf(refused)->asked, kStateBytes);
    EXPECT_EQ(QuotaExceededOf(refused)->limit, 3 * kStateBytes);
  }
  StoreHarness harness(GetParam(), WithQuota(0, 3 * kStateBytes - 1));
  EXPECT_TRUE(Put(harness.store(), 1).ok());
  EXPECT_TRUE(Put(harness.store(), 2).ok());
  EXPECT_FALSE(Put(harness.store(), 3).ok());
  // All states of a commit, or none.
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(2)).ok());
  const SavedState a = SampleState(SampleId(5), 5);
  const SavedState b = SampleState(SampleId(6), 6);
  Commit both = CommitOf(a);
  both.states.push_back({b.manifest, &b.slot});
  EXPECT_FALSE(harness.store().Apply(both).ok());
  EXPECT_EQ(harness.store().Stats()->num_states, 1u);
}

TEST_P(QuotaSuite, EveryTenantHasItsOwn) {
  RocksDbOptions options = WithQuota(1, 0);
  options.quotas.by_tenant["large"] = {2, 0};
  options.quotas.by_tenant["free"] = {0, 0};
  StoreHarness harness(GetParam(), options);
  const auto count = [&](const std::string& tenant) {
    uint64_t num_stored = 0;
    for (uint64_t i = 1; i <= 4; ++i) {
      SavedState state = SampleState(SampleId(i), i);
      state.manifest.tenant = tenant;
      num_stored += harness.store().Apply(CommitOf(state)).ok() ? 1 : 0;
    }
    return num_stored;
  };
  EXPECT_EQ(count(kTenant), 1u);
  EXPECT_EQ(count("another"), 1u);
  EXPECT_EQ(count("large"), 2u);
  EXPECT_EQ(count("free"), 4u);
  EXPECT_EQ(harness.store().GetQuota("large").limit, (Quota{2, 0}));
  EXPECT_EQ(harness.store().GetQuota("unknown").used, Quota());
}

TEST_P(QuotaSuite, DroppedBytesAreFreeAtOnce) {
  StoreHarness harness(GetParam(), WithQuota(2, 0));
  harness.Save(1);
  SavedState child = SampleState(SampleId(2), 2);
  child.manifest.parent_id = SampleId(1);
  child.manifest.expires = harness.clock().Now() + absl::Seconds(10);
  ASSERT_TRUE(harness.store().Apply(CommitOf(child)).ok());
  EXPECT_FALSE(Put(harness.store(), 3).ok());
  // Its manifest stays for the child's history; the bytes are gone.
  ASSERT_TRUE(harness.store().DeleteState(kTenant, SampleId(1)).ok());
  ExpectUsage(harness.store(), {1, kStateBytes}, {});
  EXPECT_TRUE(Put(harness.store(), 3).ok());
  // Expired, and there until the sweep.
  harness.clock().Advance(absl::Seconds(11));
  EXPECT_FALSE(Put(harness.store(), 4).ok());
  ASSERT_TRUE(harness.store().Sweep(harness.clock().Now()).ok());
  EXPECT_TRUE(Put(harness.store(), 4).ok());
  ExpectUsage(harness.store(), {2, 2 * kStateBytes}, {});
}

TEST_P(QuotaSuite, AReservationKeepsQuotaForItsHolder) {
  StoreHarness harness(GetParam(), WithQuota(3, 0));
  harness.Save(1);
  absl::StatusOr<StateReservation> kept = Reserve(harness.store(), 2);
  ASSERT_TRUE(kept.ok()) << kept.status();
  ExpectUsage(harness.store(), {1, kStateBytes}, {2, 2 * kStateBytes});
  const absl::Status refused = Put(harness.store(), 2);
  ASSERT_TRUE(QuotaExceededOf(refused).has_value());
  EXPECT_EQ(QuotaExceededOf(refused)->reserved, 2u);
  EXPECT_FALSE(Reserve(harness.store(), 1).ok());
  EXPECT_TRUE(Reserve(harness.store(), 0).ok());
  EXPECT_TRUE(Put(harness.store(), 3, &*kept).ok());
  ExpectUsage(harness.store(), {2, 2 * kStateBytes}, {1, kStateBytes});
  EXPECT_EQ(kept->kept(), (Quota{1, kStateBytes}));
  // Moved, split and put together again it stays the same.
  StateReservation moved = *std::move(kept);
  StateReservation part = moved.Split({5, 100});
  EXPECT_EQ(part.kept(), (Quota{1, 100}));
  EXPECT_EQ(moved.kept(), (Quota{0, kStateBytes - 100}));
  moved.Merge(std::move(part));
  EXPECT_EQ(moved.kept(), (Quota{1, kStateBytes}));
  ExpectUsage(harness.store(), {2, 2 * kStateBytes}, {1, kStateBytes});
  moved = StateReservation();
  ExpectUsage(harness.store(), {2, 2 * kStateBytes}, {});
  EXPECT_TRUE(Put(harness.store(), 4).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(
      harness.store().Reserve("No Tenant", 1, SampleLayout(), StateCodec::kRaw).status()));
}

TEST_P(QuotaSuite, BeyondAReservationOnlyWhatIsFreeIsTaken) {
  StoreHarness harness(GetParam(), WithQuota(3, 0));
  harness.Save(1);
  absl::StatusOr<StateReservation> kept = Reserve(harness.store(), 1);
  ASSERT_TRUE(kept.ok());
  EXPECT_TRUE(Put(harness.store(), 2, &*kept).ok());
  EXPECT_TRUE(Put(harness.store(), 3, &*kept).ok());  // the free one
  EXPECT_FALSE(Put(harness.store(), 4, &*kept).ok());
  ExpectUsage(harness.store(), {3, 3 * kStateBytes}, {});
}

TEST_P(QuotaSuite, AFailedCommitGivesBackWhatItTook) {
  StoreHarness harness(GetParam(), WithQuota(3, 0));
  harness.Save(1, "", "s");
  absl::StatusOr<StateReservation> kept = Reserve(harness.store(), 1);
  ASSERT_TRUE(kept.ok());
  const SavedState a = SampleState(SampleId(2), 2);
  const SavedState b = SampleState(SampleId(3), 3);
  Commit commit = CommitOf(a);
  commit.states.push_back({b.manifest, &b.slot});
  commit.head_move = Commit::HeadMove{"s", SampleId(2), "stale"};
  commit.reservation = &*kept;
  EXPECT_TRUE(absl::IsAborted(harness.store().Apply(commit)));
  EXPECT_TRUE(absl::IsAlreadyExists(Put(harness.store(), 1, &*kept)));
  ExpectUsage(harness.store(), {1, kStateBytes}, {1, kStateBytes});
  // Refused by the quota itself: two of three are there for it.
  const SavedState c = SampleState(SampleId(4), 4);
  commit.head_move.reset();
  commit.states.push_back({c.manifest, &c.slot});
  EXPECT_TRUE(absl::IsResourceExhausted(harness.store().Apply(commit)));
  ExpectUsage(harness.store(), {1, kStateBytes}, {1, kStateBytes});
  commit.states.pop_back();
  EXPECT_TRUE(harness.store().Apply(commit).ok());
  ExpectUsage(harness.store(), {3, 3 * kStateBytes}, {});
}

TEST_P(QuotaSuite, WhatAStateReallyTakesIsUsed) {
  for (StateCodec codec : {StateCodec::kRaw, StateCodec::kZstd, StateCodec::kBF16}) {
    StoreHarness harness(GetParam(), WithQuota(0, 100'000));
    absl::StatusOr<StateReservation> kept = Reserve(harness.store(), 1, codec);
    ASSERT_TRUE(kept.ok());
    ASSERT_TRUE(Put(harness.store(), 1, &*kept, codec).ok());
    const uint64_t stored_bytes = harness.store().GetManifest(kTenant, SampleId(1))->stored_bytes;
    ExpectUsage(harness.store(), {1, stored_bytes}, {});
    EXPECT_EQ(harness.store().Stats()->live_bytes, stored_bytes);
    EXPECT_LE(stored_bytes, MaxStoredBytes(SampleLayout(), codec, 256));
    if (codec == StateCodec::kBF16) {
      EXPECT_LT(stored_bytes, kStateBytes);
    }
  }
}

TEST_P(QuotaSuite, ManyAtOnceNeverGetBeyondIt) {
  constexpr int kNumThreads = 8;
  constexpr uint64_t kEach = 6;
  constexpr uint64_t kLimit = 11;
  StoreHarness harness(GetParam(), WithQuota(kLimit, 0));
  std::atomic<uint64_t> num_stored{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kEach; ++i) {
        const uint64_t number = 1 + static_cast<uint64_t>(t) * kEach + i;
        absl::StatusOr<StateReservation> kept;
        if (t % 2 == 0) kept = Reserve(harness.store(), 1);
        const absl::Status status = Put(harness.store(), number, kept.ok() ? &*kept : nullptr);
        EXPECT_TRUE(status.ok() || QuotaExceededOf(status).has_value()) << status;
        const Quota used = harness.store().GetQuota(kTenant).used;
        EXPECT_LE(used.num_states, kLimit);
        if (!status.ok()) continue;
        ++num_stored;
        if (i % 3 == 2) {
          EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(number)).ok());
          --num_stored;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(harness.store().Stats()->num_states, num_stored);
  ExpectUsage(harness.store(), {num_stored, num_stored * kStateBytes}, {});
  for (uint64_t i = 100; num_stored < kLimit; ++i, ++num_stored) {
    EXPECT_TRUE(Put(harness.store(), i).ok());
  }
  EXPECT_FALSE(Put(harness.store(), 200).ok());
}

INSTANTIATE_TEST_SUITE_P(Stores, QuotaSuite,
                         ::testing::Values(StoreKind::kMemory, StoreKind::kRocksDb),
                         [](const auto& kind) {
                           return kind.param == StoreKind::kMemory ? "Memory" : "RocksDb";
                         });

TEST(RocksDbQuota, WhatIsUsedIsKnownAfterOpening) {
  StoreHarness harness(StoreKind::kRocksDb, WithQuota(3, 0));
  for (uint64_t i = 1; i <= 3; ++i) harness.Save(i);
  ASSERT_TRUE(harness.store().DeleteState(kTenant, SampleId(2)).ok());
  harness.Reopen();
  ExpectUsage(harness.store(), {2, 2 * kStateBytes}, {});
  EXPECT_TRUE(Put(harness.store(), 4).ok());
  EXPECT_FALSE(Put(harness.store(), 5).ok());
}

TEST(RocksDbQuota, ALoweredLimitLeavesEverythingThere) {
  TemporaryDirectory directory;
  const std::string path = directory.Sub("store");
  {
    auto store = OpenRocksDbStore(path, WithQuota(0, 0), absl::Now, nullptr);
    ASSERT_TRUE(store.ok());
    for (uint64_t i = 1; i <= 5; ++i) ASSERT_TRUE(Put(**store, i).ok());
  }
  auto store = OpenRocksDbStore(path, WithQuota(3, 0), absl::Now, nullptr);
  ASSERT_TRUE(store.ok());
  for (uint64_t i = 1; i <= 5; ++i) EXPECT_TRUE((*store)->Load(kTenant, SampleId(i)).ok());
  for (uint64_t i = 1; i <= 3; ++i) {
    EXPECT_FALSE(Put(**store, 6).ok());
    EXPECT_TRUE((*store)->DeleteState(kTenant, SampleId(i)).ok());
  }
  EXPECT_TRUE(Put(**store, 6).ok());
}

TEST(RocksDbQuota, AFailedWriteLeaksNothing) {
  int num_went_on = 0;
  for (int countdown = 1; countdown <= 8; ++countdown) {
    FaultyEnv faulty;
    RocksDbOptions options = WithQuota(4, 0);
    options.env = faulty.env.get();
    StoreHarness harness(StoreKind::kRocksDb, options);
    harness.Save(1);
    absl::StatusOr<StateReservation> kept = Reserve(harness.store(), 1);
    ASSERT_TRUE(kept.ok());
    faulty.system->Arm(FaultyFileSystem::Fault::kFullDisk, countdown);
    if (!Put(harness.store(), 2, &*kept).ok()) {
      ExpectUsage(harness.store(), {1, kStateBytes}, {1, kStateBytes});
    }
    faulty.system->Heal();
    if (!Put(harness.store(), 3, &*kept).ok()) continue;  // a failed sync is for good
    ++num_went_on;
    EXPECT_EQ(harness.store().GetQuota(kTenant).used.num_states,
              harness.store().Stats()->num_states);
    ExpectUsage(harness.store(), harness.store().GetQuota(kTenant).used, {});
  }
  EXPECT_GT(num_went_on, 0);
}

TEST(RocksDbQuota, ADamagedStateThatIsDeletedIsFree) {
  StoreHarness harness(StoreKind::kRocksDb, WithQuota(2, 0));
  harness.Save(1);
  harness.Save(2);
  harness.Close();
  {
    RawRocksDb raw(harness.directory());
    raw.Put(Key(KeyKind::kManifest, kTenant, SampleId(2)), "rotten", false);
  }
  harness.Reopen();
  EXPECT_FALSE(Put(harness.store(), 3).ok());
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(2)).ok());
  ExpectUsage(harness.store(), {1, kStateBytes}, {});
  EXPECT_TRUE(Put(harness.store(), 3).ok());
}

}  // namespace
}  // namespace vivarium::statestore
