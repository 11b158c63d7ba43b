// States of many chunks, which are read by two threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "statestore/rocksdb_keys.h"
#include "statestore/state_codec.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRows = 8192;  // of 1 KiB: chunks are 1 MiB

SavedState LargeState(int64_t num_rows) {
  SavedState state = SampleState(SampleId(1), 1);
  engine::StateLayout& layout = state.manifest.layout;
  layout.slot_bytes = static_cast<uint64_t>(num_rows) << 10;
  layout.parts = {{"layers.0.ssm", kernels::DType::kF32, {num_rows, 16, 16}, 0, layout.slot_bytes}};
  state.slot = SampleSlot(layout, 1);
  return state;
}

RocksDbOptions LargeOptions() {
  RocksDbOptions options = SmallOptions();
  options.chunk_bytes = kDefaultChunkBytes;
  return options;
}

TEST(LargeState, ComesBackBitForBit) {
  for (const int64_t num_rows : {kRows - 1, kRows, kRows + 1}) {
    for (const StateCodec codec : {StateCodec::kRaw, StateCodec::kZstd}) {
      StoreHarness harness(StoreKind::kRocksDb, LargeOptions());
      SavedState state = LargeState(num_rows);
      state.manifest.codec = codec;
      ASSERT_TRUE(harness.store().Apply(CommitOf(state)).ok());
      for (const bool reopens : {false, true}) {
        if (reopens) harness.Reopen();
        const auto loaded = harness.store().Load(kTenant, SampleId(1));
        ASSERT_TRUE(loaded.ok()) << loaded.status();
        ASSERT_EQ(loaded->slot.size(), state.slot.size());
        EXPECT_EQ(std::memcmp(loaded->slot.data(), state.slot.data(), state.slot.size()), 0);
      }
    }
  }
}

// Whichever thread meets which damage first.
TEST(LargeState, TheFirstDamagedChunkIsNamed) {
  StoreHarness harness(StoreKind::kRocksDb, LargeOptions());
  const SavedState state = LargeState(kRows + 1);
  ASSERT_TRUE(harness.store().Apply(CommitOf(state)).ok());
  harness.Close();
  {
    RawRocksDb raw(harness.directory());
    for (const uint32_t index : {3u, 4u, 8u}) {
      std::string chunk = raw.Get(ChunkKey(kTenant, SampleId(1), index), true);
      chunk[chunk.size() / 2] ^= 1;
      raw.Put(ChunkKey(kTenant, SampleId(1), index), chunk, true);
    }
    raw.Erase(ChunkKey(kTenant, SampleId(1), 5), true);
  }
  harness.Reopen();
  for (int i = 0; i < 30; ++i) {
    const absl::Status status = harness.store().Load(kTenant, SampleId(1)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("chunk 3 of 9"));
  }
}

}  // namespace
}  // namespace vivarium::statestore
