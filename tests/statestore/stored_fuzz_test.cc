// Damage below the store, past RocksDB's own checksums: bits flipped, values cut, swapped, removed.
// Every one is found (DATA_LOSS, or NOT_FOUND where a name itself is gone), none is served.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "statestore/byte_codec.h"
#include "statestore/rocksdb_keys.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

// Opening RocksDB anew for each damage would cost 20 ms: one round damages one value of each state.
constexpr uint64_t kNumStates = 100;
constexpr uint32_t kNumChunks = 5;  // 1,152 bytes in chunks of 256

int NumRounds() {
  const char* wanted = std::getenv("VIVARIUM_FUZZ_ROUNDS");
  return (wanted != nullptr ? std::atoi(wanted) : 10'000) / static_cast<int>(kNumStates);
}

std::string Damaged(std::string value, std::mt19937_64& random) {
  switch (random() % 3) {
    case 0: {
      char& byte = value[random() % value.size()];
      byte = static_cast<char>(byte ^ (1 << random() % 8));
      return value;
    }
    case 1:
      value.resize(random() % value.size());
      return value;
    default:
      return value + std::string(1 + random() % 40, static_cast<char>(random()));
  }
}

// `value` is a frame; its checksum right again.
std::string Resign(std::string value) {
  if (value.size() < 16) return value;
  value.resize(value.size() - 8);
  ByteWriter(&value).Number<uint64_t>(Checksum(value));
  return value;
}

class StoredFuzz : public ::testing::Test {
 protected:
  // One stored value of a state, as it was.
  struct Value {
    std::string key;
    bool is_chunk;
    std::string bytes;
  };

  void SetUp() override {
    for (uint64_t i = 1; i <= kNumStates; ++i) {
      saved_.push_back(harness_.Save(i, i == 1 ? "" : SampleId(i - 1), "s"));
    }
    harness_.Close();
    RawRocksDb raw(harness_.directory());
    for (const SavedState& state : saved_) {
      values_.emplace_back();
      const std::string key = Key(KeyKind::kManifest, kTenant, state.manifest.id);
      values_.back().push_back({key, false, raw.Get(key, false)});
      for (uint32_t i = 0; i < kNumChunks; ++i) {
        const std::string chunk_key = ChunkKey(kTenant, state.manifest.id, i);
        values_.back().push_back({chunk_key, true, raw.Get(chunk_key, true)});
      }
    }
  }

  const Value& RandomValue(size_t state_index) {
    return values_[state_index][random_() % values_[state_index].size()];
  }
  void Restore(RawRocksDb& raw) {
    for (const std::vector<Value>& of_state : values_) {
      for (const Value& value : of_state) raw.Put(value.key, value.bytes, value.is_chunk);
    }
  }
  void ExpectAllWell() {
    {
      RawRocksDb raw(harness_.directory());
      Restore(raw);
    }
    harness_.Reopen();
    for (const SavedState& expected : saved_) {
      const absl::StatusOr<SavedState> found = harness_.store().Load(kTenant, expected.manifest.id);
      ASSERT_TRUE(found.ok()) << found.status();
      ExpectSameState(*found, expected);
    }
  }

  StoreHarness harness_{StoreKind::kRocksDb};
  std::vector<SavedState> saved_;
  std::vector<std::vector<Value>> values_;  // by state: manifest, then chunks
  std::mt19937_64 random_{11};
};

TEST_F(StoredFuzz, EveryDamagedValueIsFound) {
  for (int round = 0; round < NumRounds(); ++round) {
    std::vector<bool> is_manifest(kNumStates);
    {
      RawRocksDb raw(harness_.directory());
      Restore(raw);
      for (size_t i = 0; i < kNumStates; ++i) {
        const Value& value = RandomValue(i);
        is_manifest[i] = !value.is_chunk;
        raw.Put(value.key, Damaged(value.bytes, random_), value.is_chunk);
      }
    }
    harness_.Reopen();
    StateStore& store = harness_.store();
    for (size_t i = 0; i < kNumStates; ++i) {
      const StateId& id = saved_[i].manifest.id;
      ASSERT_TRUE(absl::IsDataLoss(store.Load(kTenant, id).status())) << round << ", " << id;
      ASSERT_TRUE(absl::IsDataLoss(store.VerifyState(kTenant, id)));
      ASSERT_EQ(absl::IsDataLoss(store.GetManifest(kTenant, id).status()), is_manifest[i]);
    }
    ASSERT_TRUE(absl::IsDataLoss(store.ListStates(kTenant, {}, 1000, "").status()));
    harness_.Close();
  }
  ExpectAllWell();
}

TEST_F(StoredFuzz, SwappedValuesAreFound) {
  for (int round = 0; round < NumRounds() / 4; ++round) {
    {
      RawRocksDb raw(harness_.directory());
      Restore(raw);
      // Neighbours change places: a manifest, or a chunk, with one of another state, or chunks of
      // one state with each other.
      for (size_t i = 0; i + 1 < kNumStates; i += 2) {
        const size_t place = random_() % (1 + kNumChunks);
        const size_t other_place = place == 0 ? 0 : 1 + random_() % kNumChunks;
        const size_t other = place == other_place || random_() % 2 == 0 ? i + 1 : i;
        const Value& one_value = values_[i][place];
        const Value& other_value = values_[other][other_place];
        raw.Put(one_value.key, other_value.bytes, one_value.is_chunk);
        raw.Put(other_value.key, one_value.bytes, one_value.is_chunk);
      }
    }
    harness_.Reopen();
    for (size_t i = 0; i + 1 < kNumStates; i += 2) {
      ASSERT_TRUE(absl::IsDataLoss(harness_.store().Load(kTenant, saved_[i].manifest.id).status()));
    }
    harness_.Close();
  }
  ExpectAllWell();
}

TEST_F(StoredFuzz, MissingChunksAreFound) {
  for (uint32_t i = 0; i < 5; ++i) {
    const std::string key = ChunkKey(kTenant, SampleId(3), i);
    std::string value;
    {
      RawRocksDb raw(harness_.directory());
      value = raw.Get(key, true);
      raw.Erase(key, true);
    }
    harness_.Reopen();
    EXPECT_EQ(harness_.store().Load(kTenant, SampleId(3)).status().code(),
              absl::StatusCode::kDataLoss);
    EXPECT_EQ(harness_.store().Load(kTenant, SampleId(4)).status().code(), absl::StatusCode::kOk);
    harness_.Close();
    RawRocksDb(harness_.directory()).Put(key, value, true);
  }
}

// With right checksums the decoders behind them are reached: no crash, and whatever is served has
// the slot that was saved.
TEST_F(StoredFuzz, ResignedManifestsServeNoOtherSlot) {
  int num_served = 0;
  int num_refused = 0;
  for (int round = 0; round < NumRounds() / 2; ++round) {
    {
      RawRocksDb raw(harness_.directory());
      for (size_t i = 0; i < kNumStates; ++i) {
        const Value& value = values_[i][0];
        raw.Put(value.key, Resign(Damaged(value.bytes, random_)), false);
      }
    }
    harness_.Reopen();
    StateStore& store = harness_.store();
    for (const SavedState& expected : saved_) {
      const absl::StatusOr<SavedState> found = store.Load(kTenant, expected.manifest.id);
      (void)store.Ancestry(kTenant, expected.manifest.id, 200);
      if (!found.ok()) {
        const absl::Status& status = found.status();
        ASSERT_TRUE(absl::IsDataLoss(status) || absl::IsUnimplemented(status) ||
                    absl::IsNotFound(status))  // its expiry was what changed
            << status;
        ++num_refused;
        continue;
      }
      ++num_served;
      ASSERT_EQ(found->slot.size(), expected.slot.size());
      ASSERT_EQ(std::memcmp(found->slot.data(), expected.slot.data(), found->slot.size()), 0);
    }
    (void)store.ListStates(kTenant, WithDropped(), 1000, "");
    ASSERT_TRUE(store.Sweep(harness_.clock().Now()).ok());
    harness_.Close();
    RawRocksDb raw(harness_.directory());
    Restore(raw);
  }
  EXPECT_GT(num_served, NumRounds() / 2);
  EXPECT_GT(num_refused, NumRounds() / 2);
  ExpectAllWell();
}

TEST_F(StoredFuzz, ADamagedSessionIsFound) {
  const std::string key = Key(KeyKind::kSession, kTenant, "s");
  const std::string value = RawRocksDb(harness_.directory()).Get(key, false);
  for (int round = 0; round < 20; ++round) {
    RawRocksDb(harness_.directory()).Put(key, Damaged(value, random_), false);
    harness_.Reopen();
    EXPECT_TRUE(absl::IsDataLoss(harness_.store().GetSession(kTenant, "s").status()));
    EXPECT_TRUE(absl::IsDataLoss(harness_.store().ListSessions(kTenant, 10, "").status()));
    harness_.Close();
  }
}

TEST_F(StoredFuzz, ADamagedStateDoesNotKeepTheOthersFromTheSweep) {
  harness_.Reopen();
  ASSERT_TRUE(harness_.store().DeleteSession(kTenant, "s", "").ok());
  StateUpdate update;
  update.expires = harness_.clock().Now();
  for (const SavedState& state : saved_) {
    ASSERT_TRUE(harness_.store().UpdateState(kTenant, state.manifest.id, update).ok());
  }
  harness_.Close();
  {
    RawRocksDb raw(harness_.directory());
    const std::string key = Key(KeyKind::kManifest, kTenant, SampleId(5));
    raw.Put(key, Damaged(raw.Get(key, false), random_), false);
  }
  harness_.Reopen();
  EXPECT_TRUE(harness_.store().Sweep(harness_.clock().Now()).ok());
  EXPECT_GE(harness_.events().num_faults, 1);
  EXPECT_GE(harness_.events().num_expired, kNumStates - 2);
}

}  // namespace
}  // namespace vivarium::statestore
