// States whose chunks are a file of their own: they behave as others do, and leave nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "statestore/rocksdb_chunk_file.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

RocksDbOptions FileOptions() {
  RocksDbOptions options = SmallOptions();
  options.chunk_bytes = kMixedChunkBytes;
  options.min_file_bytes = kMixedFileBytes;
  return options;
}

int NumChunkFiles(const std::string& directory) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    count += IsChunkFileName(entry.path().filename().string()) ? 1 : 0;
  }
  return count;
}

TEST(ChunkFiles, ACommitOfEveryKindIsOne) {
  StoreHarness harness(StoreKind::kRocksDb, FileOptions());
  std::vector<SavedState> states;
  for (uint64_t i = 1; i <= 6; ++i) states.push_back(MixedSampleState(i));
  Commit commit;
  commit.tenant = kTenant;
  for (const SavedState& state : states) commit.states.push_back({state.manifest, &state.slot});
  ASSERT_TRUE(harness.store().Apply(commit).ok());
  EXPECT_EQ(NumChunkFiles(harness.directory()), 0);  // taken
  harness.Reopen();
  for (const SavedState& state : states) {
    const absl::StatusOr<SavedState> found = harness.store().Load(kTenant, state.manifest.id);
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectSameState(*found, state);
  }
  for (const SavedState& state : states) {
    ASSERT_TRUE(harness.store().DeleteState(kTenant, state.manifest.id).ok());
  }
  harness.Close();
  RawRocksDb raw(harness.directory());
  EXPECT_THAT(raw.Keys("", true), ::testing::IsEmpty());
}

// The ids of two tenants may be the same, also at the same time; and an id may come again.
TEST(ChunkFiles, TenantsDontMeet) {
  StoreHarness harness(StoreKind::kRocksDb, FileOptions());
  const auto state_of = [](const std::string& tenant, uint64_t seed) {
    SavedState state = MixedSampleState(3 * seed);
    state.manifest.id = SampleId(1);
    state.manifest.tenant = tenant;
    return state;
  };
  for (uint64_t round = 0; round < 20; ++round) {
    const SavedState one = state_of("one", 2 * round), other = state_of("other", 2 * round + 1);
    std::thread thread([&] { EXPECT_TRUE(harness.store().Apply(CommitOf(one)).ok()); });
    EXPECT_TRUE(harness.store().Apply(CommitOf(other)).ok());
    thread.join();
    ExpectSameState(*harness.store().Load("one", SampleId(1)), one);
    ExpectSameState(*harness.store().Load("other", SampleId(1)), other);
    ASSERT_TRUE(harness.store().DeleteState("one", SampleId(1)).ok());
    ASSERT_TRUE(harness.store().DeleteState("other", SampleId(1)).ok());
  }
}

TEST(ChunkFiles, ARefusedCommitLeavesNothing) {
  StoreHarness harness(StoreKind::kRocksDb, FileOptions());
  harness.Save(1, "", "s");
  const SavedState state = MixedSampleState(3);
  Commit commit = CommitOf(state);
  commit.head_move = Commit::HeadMove{"s", state.manifest.id, "another etag"};
  EXPECT_TRUE(absl::IsAborted(harness.store().Apply(commit)));
  EXPECT_EQ(harness.store().Stats()->num_states, 1u);
  EXPECT_EQ(NumChunkFiles(harness.directory()), 0);
  harness.Close();
  RawRocksDb raw(harness.directory());
  EXPECT_THAT(raw.Keys("p/", false), ::testing::IsEmpty());
}

TEST(ChunkFiles, WhatACrashLeftIsRemoved) {
  StoreHarness harness(StoreKind::kRocksDb, FileOptions());
  harness.Save(1);
  harness.Close();
  std::ofstream(harness.directory() + "/" + ChunkFileName(kTenant, SampleId(3))) << "half a file";
  ASSERT_EQ(NumChunkFiles(harness.directory()), 1);
  harness.Reopen();
  EXPECT_EQ(NumChunkFiles(harness.directory()), 0);
  EXPECT_TRUE(harness.store().Load(kTenant, SampleId(1)).ok());
}

}  // namespace
}  // namespace vivarium::statestore
