// The store's tier of host memory: what it keeps, and that it never decides what is answered.
#include "statestore/state_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "statestore/slot_packing.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;
using engine::StateBuffer;

constexpr uint64_t kSlotBytes = 1024;
constexpr uint64_t kOneEntry = kSlotBytes + StateCache::kEntryBytes;

StateBuffer Filled(int value, uint64_t num_bytes = kSlotBytes) {
  StateBuffer buffer(num_bytes);
  std::memset(buffer.data(), value, num_bytes);
  return buffer;
}

bool Holds(StateCache& cache, const std::string& key, int value) {
  const auto found = cache.Get(key, {7});
  return found.ok() && found->size() == kSlotBytes &&
         std::memcmp(found->data(), Filled(value).data(), kSlotBytes) == 0;
}

TEST(StateCache, TheLeastRecentlyUsedGoFirstAtTheLimit) {
  StateCache cache(3 * kOneEntry);
  for (int i = 0; i < 3; ++i) cache.Put(std::to_string(i), {7}, Filled(i));
  EXPECT_EQ(cache.stats().num_bytes, 3 * kOneEntry) << "exactly at it";
  EXPECT_EQ(cache.stats().num_evictions, 0u);
  EXPECT_TRUE(Holds(cache, "0", 0));
  cache.Put("3", {7}, Filled(3));
  EXPECT_TRUE(Holds(cache, "0", 0));
  EXPECT_FALSE(Holds(cache, "1", 1)) << "0 was used after it";
  EXPECT_TRUE(Holds(cache, "2", 2));
  EXPECT_TRUE(Holds(cache, "3", 3));
  EXPECT_EQ(cache.stats().num_states, 3u);
  EXPECT_EQ(cache.stats().num_evictions, 1u);
  cache.Put("2", {7}, Filled(9));
  EXPECT_TRUE(Holds(cache, "2", 9)) << "in place of what was there";
  EXPECT_EQ(cache.stats().num_bytes, 3 * kOneEntry);
  cache.Erase("2");
  cache.Erase("2");
  EXPECT_FALSE(Holds(cache, "2", 9));
  EXPECT_EQ(cache.stats().num_bytes, 2 * kOneEntry);
}

TEST(StateCache, WhatDoesNotFitIsNotKept) {
  StateCache cache(kOneEntry);
  cache.Put("a", {7}, Filled(1));
  EXPECT_TRUE(Holds(cache, "a", 1));
  cache.Put("b", {7}, Filled(2, kSlotBytes + 1));
  EXPECT_TRUE(Holds(cache, "a", 1)) << "nothing goes for what can't come";
  cache.Put("a", {7}, Filled(2, kSlotBytes + 1));
  EXPECT_EQ(cache.stats().num_states, 0u) << "but its old bytes aren't it any more";
  StateCache none(0);
  none.Put("a", {7}, Filled(1));
  EXPECT_FALSE(none.keeps_anything());
  EXPECT_EQ(none.stats().num_bytes, 0u);
}

TEST(StateCache, OtherChecksumsMeanAnotherState) {
  StateCache cache(kOneEntry);
  cache.Put("a", {7, 8}, Filled(1));
  EXPECT_EQ(cache.Get("a", {7, 9}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache.stats().num_states, 0u);
}

TEST(StateCache, AChangeInMemoryIsNeverHandedOut) {
  for (const uint64_t at : {uint64_t{0}, kSlotBytes / 2, kSlotBytes - 1}) {
    StateCache cache(kOneEntry);
    StateBuffer slot = Filled(1);
    std::byte* const bytes = slot.data();
    cache.Put("a", {7}, std::move(slot));
    EXPECT_TRUE(Holds(cache, "a", 1));
    bytes[at] ^= std::byte{16};
    const auto found = cache.Get("a", {7});
    EXPECT_EQ(found.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(cache.Get("a", {7}).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(cache.stats().num_bytes, 0u);
  }
}

LoadTier TierOf(StoreHarness& harness, uint64_t number) {
  const auto state = harness.store().Load(kTenant, SampleId(number));
  EXPECT_TRUE(state.ok()) << state.status();
  return state->tier;
}

TEST(CachedStore, SavedAndLoadedStatesComeFromMemory) {
  StoreHarness harness(StoreKind::kCached);
  const SavedState saved = harness.Save(1);
  const auto from_memory = harness.store().Load(kTenant, SampleId(1));
  ASSERT_TRUE(from_memory.ok());
  EXPECT_EQ(from_memory->tier, LoadTier::kHost);
  ExpectSameState(*from_memory, saved);
  harness.Reopen();
  EXPECT_EQ(TierOf(harness, 1), LoadTier::kDisk) << "nothing is in memory after a restart";
  EXPECT_EQ(TierOf(harness, 1), LoadTier::kHost);
  EXPECT_EQ(harness.store().Stats()->cache_states, 1u);
  for (uint64_t i = 2; i < 20; ++i) harness.Save(i);
  EXPECT_EQ(TierOf(harness, 1), LoadTier::kDisk);
  EXPECT_EQ(TierOf(harness, 19), LoadTier::kHost);
  const auto stats = harness.store().Stats();
  EXPECT_LE(stats->cache_bytes, stats->cache_limit_bytes);
  EXPECT_GT(stats->cache_evictions, 10u);
}

// What a codec loses is lost in memory too.
TEST(CachedStore, EveryCodecComesBackFromMemoryAsFromDisk) {
  for (const StateCodec codec : {StateCodec::kRaw, StateCodec::kZstd, StateCodec::kBF16}) {
    StoreHarness harness(StoreKind::kCached);
    SavedState state = SampleState(SampleId(1), 1);
    state.manifest.codec = codec;
    ASSERT_TRUE(harness.store().Apply(CommitOf(state)).ok());
    const auto from_memory = harness.store().Load(kTenant, SampleId(1));
    harness.Reopen();
    const auto from_disk = harness.store().Load(kTenant, SampleId(1));
    ASSERT_EQ(from_memory->tier, LoadTier::kHost);
    ASSERT_EQ(from_disk->tier, LoadTier::kDisk);
    ExpectSameState(*from_memory, *from_disk);
    EXPECT_EQ(std::memcmp(from_disk->slot.data(), state.slot.data(), state.slot.size()) == 0,
              codec != StateCodec::kBF16);
  }
}

TEST(CachedStore, WhatIsGoneIsGone) {
  StoreHarness harness(StoreKind::kCached);
  StateStore& store = harness.store();
  const auto code = [&](uint64_t number, const std::string& tenant = kTenant) {
    return store.Load(tenant, SampleId(number)).status().code();
  };
  harness.Save(1);
  EXPECT_EQ(code(1, "other"), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store.DeleteState(kTenant, SampleId(1)).ok());
  EXPECT_EQ(code(1), absl::StatusCode::kNotFound);
  EXPECT_EQ(store.Stats()->cache_states, 0u) << "its bytes are not kept either";

  SavedState state = SampleState(SampleId(2), 2);
  state.manifest.pinned = false;
  state.manifest.expires = harness.clock().Now() + absl::Seconds(5);
  ASSERT_TRUE(store.Apply(CommitOf(state)).ok());
  EXPECT_EQ(TierOf(harness, 2), LoadTier::kHost);
  harness.clock().Advance(absl::Seconds(5));
  EXPECT_EQ(code(2), absl::StatusCode::kNotFound) << "expired, though not yet swept";
  ASSERT_TRUE(store.Sweep(harness.clock().Now()).ok());
  EXPECT_EQ(store.Stats()->cache_states, 0u);

  const SavedState refused = SampleState(SampleId(3), 3);
  Commit commit = CommitOf(refused);
  commit.head_move = Commit::HeadMove{"s", SampleId(3), "stale"};
  EXPECT_FALSE(store.Apply(commit).ok());
  EXPECT_EQ(code(3), absl::StatusCode::kNotFound);
  EXPECT_EQ(store.Stats()->cache_states, 0u) << "only what is durable is kept";
}

// Changes every blob file of the store under its feet: of four chunks, the second.
void DamageBlobs(const std::string& directory) {
  int num_damaged = 0;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() != ".blob") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(entry.file_size() * 3 / 8));
    file.write("damage!!", 8);
    ++num_damaged;
  }
  ASSERT_GT(num_damaged, 0);
}

TEST(CachedStore, VerifyAndScrubReadTheDisk) {
  RocksDbOptions options = SmallOptions();
  options.chunk_bytes = 16 << 10;  // large enough for blob files
  options.state_cache_bytes = 1 << 20;
  for (const bool scrubs : {false, true}) {
    StoreHarness harness(StoreKind::kRocksDb, options);
    SavedState state = SampleState(SampleId(1), 1);
    engine::StateLayout& layout = state.manifest.layout;
    layout.slot_bytes = 64 << 10;
    layout.parts = {{"layers.0.ssm", kernels::DType::kF32, {64, 16, 16}, 0, 64 << 10}};
    state.slot = SampleSlot(layout, 1);
    const absl::Status status = harness.store().Apply(CommitOf(state));
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(harness.store().Compact().ok());
    EXPECT_TRUE(harness.store().VerifyState(kTenant, SampleId(1)).ok());
    DamageBlobs(harness.directory());
    EXPECT_EQ(TierOf(harness, 1), LoadTier::kHost) << "its bytes in memory are sound";
    if (scrubs) {
      EXPECT_EQ(harness.store().Scrub({})->num_damaged, 1u);
    } else {
      EXPECT_EQ(harness.store().VerifyState(kTenant, SampleId(1)).code(),
                absl::StatusCode::kDataLoss);
    }
    // Once found, the answer is the same as after a restart.
    EXPECT_EQ(harness.store().Load(kTenant, SampleId(1)).status().code(),
              absl::StatusCode::kDataLoss);
    EXPECT_EQ(harness.store().Stats()->cache_states, 0u);
  }
}

// One id, deleted and made anew with other bytes, over and over, while others load it.
TEST(CachedStore, BytesAreAlwaysThoseOfTheManifest) {
  StoreHarness harness(StoreKind::kCached);
  StateStore& store = harness.store();
  std::atomic<bool> stops = false;
  std::atomic<int> num_loads = 0;
  const auto check = [&] {
    const auto found = store.Load(kTenant, SampleId(1));
    if (!found.ok()) {
      EXPECT_EQ(found.status().code(), absl::StatusCode::kNotFound) << found.status();
      return;
    }
    ++num_loads;
    const StateBuffer expected = SampleSlot(SampleLayout(), found->manifest.position);
    EXPECT_EQ(std::memcmp(found->slot.data(), expected.data(), expected.size()), 0);
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!stops) check();
    });
  }
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SavedState state = SampleState(SampleId(1), seed);
    state.manifest.pinned = false;
    state.manifest.position = seed;
    state.manifest.codec = StateCodec::kRaw;
    const absl::Status status = store.Apply(CommitOf(state));
    EXPECT_TRUE(status.ok()) << status;
    check();
    EXPECT_TRUE(store.DeleteState(kTenant, SampleId(1)).ok());
    EXPECT_EQ(store.Load(kTenant, SampleId(1)).status().code(), absl::StatusCode::kNotFound);
  }
  stops = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(num_loads, 150);
  EXPECT_GT(harness.events().num_host_loads, 0);
}

}  // namespace
}  // namespace vivarium::statestore
