// The rule over positions alone: its bound, and what it promises about what is left.
#include "statestore/snapshot_thinning.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "statestore/state_store.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

// Snapshots as a thread takes them, one after the other, each time thinned.
class Thread {
 public:
  explicit Thread(size_t num_newest) : num_newest_(num_newest) {}

  void Snapshot(uint64_t position) {
    taken_.push_back(position);
    left_.push_back(position);
    const std::vector<bool> stays = KeptSnapshots(left_, num_newest_);
    std::vector<uint64_t> left;
    for (size_t i = 0; i < left_.size(); ++i) {
      if (stays[i]) left.push_back(left_[i]);
    }
    num_thinned_at_once_ = std::max(num_thinned_at_once_, left_.size() - left.size());
    left_ = std::move(left);
  }

  // What the rule promises, now.
  void Check(uint64_t every_tokens) const {
    ASSERT_LE(left_.size(), MaxKeptSnapshots(num_newest_, every_tokens, taken_.back()));
    ASSERT_EQ(left_.front(), taken_.front());
    const size_t num_newest = std::min(num_newest_, taken_.size());
    ASSERT_TRUE(std::equal(taken_.end() - static_cast<int64_t>(num_newest), taken_.end(),
                           left_.end() - static_cast<int64_t>(num_newest)));
    for (uint64_t position : taken_) {
      const uint64_t distance = taken_.back() - position;
      const auto after = std::upper_bound(left_.begin(), left_.end(), position);
      ASSERT_NE(after, left_.begin());
      ASSERT_LE(position - *(after - 1), 2 * distance)
          << "of " << position << " at " << taken_.back() << " there is only " << *(after - 1);
    }
  }

  const std::vector<uint64_t>& left() const { return left_; }
  size_t num_thinned_at_once() const { return num_thinned_at_once_; }

 private:
  const size_t num_newest_;
  std::vector<uint64_t> taken_, left_;
  size_t num_thinned_at_once_ = 0;
};

TEST(SnapshotThinning, EveryKeepAndSpacingStaysWithinItsBoundAtEveryStep) {
  for (size_t num_newest : {1, 2, 3, 8, 13, 64}) {
    for (uint64_t every_tokens : {1, 16, 17, 100, 1024}) {
      Thread thread(num_newest);
      for (uint64_t i = 1; i <= 700; ++i) {
        thread.Snapshot(i * every_tokens);
        thread.Check(every_tokens);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Skipped ones, prompts, other spacings: positions are what they are.
TEST(SnapshotThinning, HoldsForAnySpacing) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::mt19937_64 random(seed);
    Thread thread(1 + random() % 10);
    uint64_t position = random() % 1'000'000;
    for (int i = 0; i < 500; ++i) {
      position += 16 + (random() % 10 == 0 ? random() % 100'000 : random() % 100);
      thread.Snapshot(position);
      thread.Check(16);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(SnapshotThinning, AMillionTokensKeepAFew) {
  Thread thread(8);
  for (uint64_t position = 1000; position <= 1'000'000; position += 1000) {
    thread.Snapshot(position);
  }
  thread.Check(1000);
  EXPECT_EQ(MaxKeptSnapshots(8, 1000, 1'000'000), 8u + 2 * (19 - 12 + 1));
  EXPECT_LE(thread.left().size(), 24u);
  EXPECT_GE(thread.left().size(), 8u + 7);  // one in each doubling, at least
  // Of 62,500 snapshots as well.
  Thread dense(8);
  for (uint64_t position = 16; position <= 1'000'000; position += 16) dense.Snapshot(position);
  EXPECT_LE(dense.left().size(), MaxKeptSnapshots(8, 16, 1'000'000));
  EXPECT_LE(dense.num_thinned_at_once(), 16u);
}

TEST(SnapshotThinning, TheRuleItself) {
  // d = 32: blocks of 32; d = 16 to 31: blocks of 16; d = 8 to 15: blocks of 8.
  EXPECT_EQ(KeptSnapshots(std::vector<uint64_t>{16, 24, 32, 40, 48}, 1),
            (std::vector<bool>{true, false, true, true, true}));
  EXPECT_EQ(KeptSnapshots(std::vector<uint64_t>{16, 24, 32, 40, 48, 56}, 1),
            (std::vector<bool>{true, false, true, false, true, true}));
  EXPECT_EQ(KeptSnapshots(std::vector<uint64_t>{16, 24, 32, 40, 48, 56}, 3),
            (std::vector<bool>{true, false, true, true, true, true}));
  EXPECT_TRUE(KeptSnapshots({}, 1).empty());
  EXPECT_EQ(KeptSnapshots(std::vector<uint64_t>{7, 7, 7}, 1),
            (std::vector<bool>{true, false, true}));
}

// A list of them always fits a manifest.
TEST(SnapshotThinning, NoThreadHasMoreThanAManifestLists) {
  EXPECT_LT(MaxKeptSnapshots(kMaxKeptNewest, 1, ~uint64_t{0}), kMaxSnapshotRefs);
}

// Snapshot after snapshot, each thinning those before it: the bytes of what is left are there, all
// others are gone from the disk's books, and the history is whole.
TEST(SnapshotThinning, ADurableThreadHoldsTheBytesOfWhatIsLeftAndItsWholeHistory) {
  constexpr uint64_t kNumSnapshots = 300;
  constexpr size_t kNumNewest = 3;
  StoreHarness harness(StoreKind::kRocksDb);
  std::vector<SnapshotRef> left;
  for (uint64_t number = 1; number <= kNumSnapshots; ++number) {
    SavedState state = SampleState(SampleId(number), number);
    state.manifest.position = 16 * number;
    if (number > 1) state.manifest.parent_id = SampleId(number - 1);
    Commit commit = CommitOf(state);
    left = PlanSnapshot(left, kNumNewest, &commit);
    ASSERT_TRUE(harness.store().Apply(commit).ok());
    if (number % 100 == 50) harness.Reopen();
  }
  StateStore& store = harness.store();
  const auto chain = store.Ancestry(kTenant, SampleId(kNumSnapshots), 2 * kNumSnapshots);
  ASSERT_TRUE(chain.ok());
  ASSERT_EQ(chain->size(), kNumSnapshots);
  uint64_t live_bytes = 0;
  for (const StateManifest& manifest : *chain) {
    const bool is_left = std::any_of(left.begin(), left.end(), [&](const SnapshotRef& snapshot) {
      return snapshot.id == manifest.id;
    });
    EXPECT_EQ(store.Load(kTenant, manifest.id).ok(), is_left) << manifest.position;
    EXPECT_EQ(manifest.bytes_dropped, !is_left);
    EXPECT_EQ(manifest.snapshots.empty(), !is_left || manifest.position == 16);
    live_bytes += manifest.stored_bytes;
  }
  const auto stats = store.Stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->num_states, left.size());
  EXPECT_EQ(stats->num_manifests, kNumSnapshots);
  EXPECT_EQ(stats->live_bytes, live_bytes);
  EXPECT_LE(left.size(), MaxKeptSnapshots(kNumNewest, 16, 16 * kNumSnapshots));
}

}  // namespace
}  // namespace vivarium::statestore
