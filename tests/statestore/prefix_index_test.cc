// The hash of prefixes and the index in memory, and the durable store's own: equal hashes, bounds,
// damage, threads, what lies on disk.
#include "statestore/prefix_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "statestore/prefix_hash.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"
#include "tests/statestore/thread_states.h"

namespace vivarium::statestore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(PrefixHash, EveryPrefixHasAnotherAndAChildContinuesItsParents) {
  const engine::ModelIdentity identity = {"model", "tokenizer", "numerics"};
  std::set<uint64_t> seen;
  const Ids tokens(1000, 5);
  const std::vector<uint64_t> hashes = ProperPrefixHashes(identity, tokens);
  ASSERT_THAT(hashes, SizeIs(1000));
  for (const uint64_t hash : hashes) EXPECT_TRUE(seen.insert(hash).second);
  EXPECT_EQ(hashes[0], PrefixSeed(identity));
  // Of the model and the tokenizer, not of where it was computed.
  EXPECT_NE(PrefixSeed({"tokenizer", "model", ""}), PrefixSeed({"model", "tokenizer", ""}));
  EXPECT_NE(PrefixSeed({"modeltok", "enizer", ""}), PrefixSeed({"model", "tokenizer", ""}));
  EXPECT_EQ(PrefixSeed({"model", "tokenizer", ""}), PrefixSeed(identity));

  StateManifest whole = ThreadState(1, nullptr, {1, 2, 3, 4, 5, 6}).manifest;
  StateManifest parent = ThreadState(2, nullptr, {1, 2, 3}).manifest;
  parent.prefix_hash = PrefixHashOf(parent, nullptr);
  StateManifest child = ThreadState(3, &parent, {4, 5, 6}).manifest;
  ASSERT_TRUE(PrefixHashOf(child, &parent).has_value());
  EXPECT_EQ(PrefixHashOf(child, &parent), PrefixHashOf(whole, nullptr));
  EXPECT_EQ(PrefixHashOf(child, nullptr), std::nullopt);
  const Ids prompt = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(PrefixHashOf(whole, nullptr), ProperPrefixHashes(whole.identity, prompt)[5]);
}

// The values are on disk: they must not change.
TEST(PrefixHash, IsTheSameForEver) {
  EXPECT_EQ(ExtendPrefix(0, 0), 0x5692161d100b05e5u);
  EXPECT_EQ(PrefixSeed({"fingerprint", "tokenizer", ""}), 0xf0e81228c62c27a1u);
}

TEST(PrefixIndex, CountsAndForgets) {
  PrefixIndex index(/*max_hashes=*/3);
  const std::vector<uint64_t> hashes = {10, 11, 12, 13, 14};
  index.Add("a", 12);
  index.Add("a", 12);
  index.Add("b", 14);
  EXPECT_EQ(index.LongestBelow("a", hashes, 5), 2u);
  EXPECT_EQ(index.LongestBelow("a", hashes, 3), 2u);
  EXPECT_EQ(index.LongestBelow("a", hashes, 2), 0u);
  EXPECT_EQ(index.LongestBelow("b", hashes, 99), 4u);
  EXPECT_EQ(index.LongestBelow("c", hashes, 5), 0u);
  index.Add("a", 10);  // of no tokens: never found
  EXPECT_EQ(index.LongestBelow("a", hashes, 2), 0u);
  EXPECT_EQ(index.num_hashes(), 3u);
  index.Add("a", 13);  // one too many
  EXPECT_EQ(index.num_hashes(), 3u);
  EXPECT_EQ(index.LongestBelow("a", hashes, 5), 2u);
  index.Remove("a", 13);
  index.Remove("a", 12);
  EXPECT_EQ(index.LongestBelow("a", hashes, 5), 2u);
  index.Remove("a", 12);
  EXPECT_EQ(index.LongestBelow("a", hashes, 5), 0u);
  index.Add("a", 13);
  EXPECT_EQ(index.LongestBelow("a", hashes, 5), 3u);
  index.Remove("b", 14);
  index.Remove("b", 14);
  index.Remove("nobody", 14);
  EXPECT_EQ(index.num_hashes(), 2u);
}

TEST(PrefixIndex, LooksThroughLongPrompts) {
  PrefixIndex index(100);
  std::vector<uint64_t> hashes(100'000);
  for (size_t i = 0; i < hashes.size(); ++i) hashes[i] = 7 * i + 1;
  for (const size_t place : {1u, 4095u, 4096u, 4097u, 50'000u, 99'999u}) {
    index.Add("t", hashes[place]);
    EXPECT_EQ(index.LongestBelow("t", hashes, hashes.size()), place);
    EXPECT_LT(index.LongestBelow("t", hashes, place), place);
  }
}

class DurablePrefix : public ::testing::Test {
 protected:
  void Make(const RocksDbOptions& options) {
    harness_ = std::make_unique<StoreHarness>(StoreKind::kRocksDb, options);
  }
  StateStore& store() { return harness_->store(); }
  SavedState Save(uint64_t number, const StateManifest* parent, const Ids& ids,
                  const std::string& numerics = "") {
    SavedState state = ThreadState(number, parent, ids);
    if (!numerics.empty()) state.manifest.identity.numerics_id = numerics;
    const absl::Status status = store().Apply(CommitOf(state));
    EXPECT_TRUE(status.ok()) << status;
    return state;
  }
  PrefixMatch Find(const Ids& prompt) {
    auto match = store().FindPrefix(kTenant, QueryOf(prompt));
    EXPECT_TRUE(match.ok()) << match.status();
    return match.value_or(PrefixMatch());
  }

  std::unique_ptr<StoreHarness> harness_;
};

TEST_F(DurablePrefix, EqualHashesOfOtherTokensAreNeverTaken) {
  RocksDbOptions options = SmallOptions();
  options.prefix_hash_mask = 0;  // all are equal
  Make(options);
  Save(1, nullptr, {1, 2, 3, 4});
  Save(2, nullptr, {1, 2, 9, 4});
  Save(3, nullptr, {1, 9});
  Save(4, nullptr, {5, 6, 7, 8, 9});
  EXPECT_EQ(Find({1, 2, 3, 4, 5, 6, 7}).id, SampleId(1));
  EXPECT_EQ(Find({1, 2, 9, 9, 9, 9, 9}).id, SampleId(2));
  EXPECT_EQ(Find({1, 7, 7, 7, 7, 7}).id, SampleId(3));
  EXPECT_EQ(Find({1, 7, 7, 7, 7, 7}).position, 1u);
  EXPECT_THAT(Find({6, 6, 7, 8, 9, 9}).id, IsEmpty());
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(1)).ok());
  EXPECT_EQ(Find({1, 2, 3, 4, 5, 6, 7}).id, SampleId(3));
  harness_->Reopen();
  EXPECT_EQ(Find({1, 2, 3, 4, 5, 6, 7}).id, SampleId(3));
}

TEST_F(DurablePrefix, CandidatesHaveABound) {
  for (const int num_others : {2, 3}) {
    RocksDbOptions options = SmallOptions();
    options.max_prefix_candidates = 3;
    Make(options);
    Save(1, nullptr, {1, 2, 3, 4});
    for (int i = 0; i < num_others; ++i) Save(2 + i, nullptr, {1, 2, 3, 4}, "other");
    const PrefixMatch match = Find({1, 2, 3, 9});
    EXPECT_EQ(match.id, num_others == 2 ? SampleId(1) : "");
    EXPECT_EQ(match.inexact_position, num_others == 2 ? 0u : 3u);
  }
}

TEST_F(DurablePrefix, HashesInMemoryHaveABound) {
  RocksDbOptions options = SmallOptions();
  options.max_prefix_hashes = 2;
  Make(options);
  Save(1, nullptr, {1, 2});
  Save(2, nullptr, {2, 3});
  Save(3, nullptr, {3, 4});
  EXPECT_EQ(Find({2, 9}).id, SampleId(2));
  EXPECT_THAT(Find({3, 9}).id, IsEmpty());
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(1)).ok());
  harness_->Reopen();
  EXPECT_EQ(Find({2, 9}).id, SampleId(2));
  EXPECT_EQ(Find({3, 9}).id, SampleId(3));
}

TEST_F(DurablePrefix, DamagedOnesArePassedOverAndReported) {
  Make(SmallOptions());
  const SavedState a = Save(1, nullptr, {1, 2, 3, 4});
  const SavedState b = Save(2, &a.manifest, {5, 6});
  Save(3, &b.manifest, {7, 8});
  Save(4, nullptr, {1, 2, 3});
  harness_->Close();
  const auto damage = [&](uint64_t number) {
    RawRocksDb raw(harness_->directory());
    const std::string key = std::string("m/") + kTenant + "/" + SampleId(number);
    std::string bytes = raw.Get(key, /*chunks=*/false);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    raw.Put(key, bytes, /*chunks=*/false);
  };
  damage(2);
  harness_->Reopen();
  const Ids prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  PrefixMatch match = Find(prompt);
  EXPECT_EQ(match.id, SampleId(1));
  EXPECT_THAT(match.damaged, ElementsAre(SampleId(3), SampleId(2)));
  EXPECT_EQ(harness_->events().num_faults, 2);
  // Deleting the damaged one takes its key along; its child can't be verified any more.
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(2)).ok());
  match = Find(prompt);
  EXPECT_EQ(match.id, SampleId(1));
  EXPECT_THAT(match.damaged, IsEmpty());
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(1)).ok());
  EXPECT_EQ(Find(prompt).id, SampleId(4));
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(3)).ok());
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(4)).ok());
  harness_->Close();
  RawRocksDb raw(harness_->directory());
  EXPECT_THAT(raw.Keys("f/", /*chunks=*/false), IsEmpty());
}

// Whoever finds a state while others come and go finds one with these tokens.
TEST_F(DurablePrefix, FindsNothingWrongWhileStatesComeAndGo) {
  Make(SmallOptions());
  constexpr int kRounds = 150;
  const auto tokens = [](uint64_t number) {
    Ids ids;
    for (uint64_t i = 0; i < 3 + number % 5; ++i) ids.push_back(static_cast<int32_t>(i % 3));
    ids.push_back(static_cast<int32_t>(number % 2));
    return ids;
  };
  std::atomic<bool> stops = false;
  std::atomic<int> num_found = 0;
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 2; ++worker) {
    threads.emplace_back([&, worker] {
      for (int i = 0; i < kRounds; ++i) {
        const uint64_t number = static_cast<uint64_t>(2 * i + worker);
        Save(number, nullptr, tokens(number));
        if (i < 4) continue;
        EXPECT_TRUE(store().DeleteState(kTenant, SampleId(number - 8)).ok());
      }
    });
  }
  threads.emplace_back([&] {
    Ids prompt;
    for (int i = 0; i < 12; ++i) prompt.push_back(i % 3);
    while (!stops) {
      const PrefixMatch match = Find(prompt);
      if (match.id.empty()) continue;
      ++num_found;
      const auto state = store().Load(kTenant, match.id);
      if (absl::IsNotFound(state.status())) continue;  // deleted in between
      ASSERT_TRUE(state.ok()) << state.status();
      ASSERT_EQ(state->manifest.position, match.position);
      for (size_t i = 0; i < match.position; ++i) {
        ASSERT_EQ(state->manifest.transcript[i].id, prompt[i]);
      }
    }
  });
  threads[0].join();
  threads[1].join();
  stops = true;
  threads[2].join();
  EXPECT_GT(num_found, 0);
}

}  // namespace
}  // namespace vivarium::statestore
