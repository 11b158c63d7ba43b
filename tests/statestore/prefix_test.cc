// FindPrefix, asked of both stores: states that have consumed the first tokens of a prompt.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "statestore/state_validation.h"
#include "tests/statestore/store_harness.h"
#include "tests/statestore/thread_states.h"

namespace vivarium::statestore {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class PrefixSuite : public ::testing::TestWithParam<StoreKind> {
 protected:
  StateStore& store() { return harness_.store(); }
  void Apply(const SavedState& state, bool is_reusable = true) {
    Commit commit = CommitOf(state);
    commit.tenant = state.manifest.tenant;
    commit.states[0].is_reusable = is_reusable;
    const absl::Status status = store().Apply(commit);
    ASSERT_TRUE(status.ok()) << status;
  }
  SavedState Save(uint64_t number, const StateManifest* parent, const Ids& ids) {
    SavedState state = ThreadState(number, parent, ids);
    Apply(state);
    return state;
  }
  PrefixMatch Find(const PrefixQuery& query, const std::string& tenant = kTenant) {
    auto match = store().FindPrefix(tenant, query);
    EXPECT_TRUE(match.ok()) << match.status();
    return match.value_or(PrefixMatch());
  }
  // "number@position" of what is found; "" = nothing.
  std::string Found(const Ids& prompt) { return Text(Find(QueryOf(prompt))); }
  std::string Text(const PrefixMatch& match) {
    if (match.id.empty()) return "";
    for (uint64_t number = 0; number < 100; ++number) {
      if (SampleId(number) == match.id) {
        return std::to_string(number) + "@" + std::to_string(match.position);
      }
    }
    return match.id;
  }

  StoreHarness harness_{GetParam()};
};

TEST_P(PrefixSuite, TheLongestThatLeavesATokenToFeed) {
  const SavedState a = Save(1, nullptr, {1, 2, 3, 4});       // has consumed 1 2 3
  const SavedState b = Save(2, &a.manifest, {5, 6});         // 1 2 3 4 5
  const SavedState c = Save(3, &b.manifest, {7, 8, 9, 10});  // .. 9
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}), "3@9");
    EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7, 8, 9, 99}), "3@9");  // another token is fed
    EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7, 8, 9}), "2@5");      // no token would be left
    EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7, 8, 0, 10, 11}), "2@5");
    EXPECT_EQ(Found({1, 2, 3, 4, 5, 0}), "2@5");
    EXPECT_EQ(Found({1, 2, 3, 4, 0, 6, 7, 8, 9, 10}), "1@3");
    EXPECT_EQ(Found({1, 2, 3, 0}), "1@3");
    EXPECT_EQ(Found({1, 2, 3}), "");
    EXPECT_EQ(Found({1, 2, 0, 4, 5, 6, 7, 8, 9, 10}), "");
    EXPECT_EQ(Found({0, 2, 3, 4, 5, 6, 7, 8, 9, 10}), "");
    EXPECT_EQ(Found({2, 3, 4, 5}), "");
    EXPECT_EQ(Found({1}), "");
    EXPECT_EQ(Found({}), "");
    harness_.Reopen();
  }
}

TEST_P(PrefixSuite, APendingTokenThatADescendantConsumedCounts) {
  const SavedState a = Save(1, nullptr, {1, 2, 3});
  const SavedState same = Save(2, &a.manifest, {});  // at the same position: nothing was consumed
  const SavedState b = Save(3, &same.manifest, {4, 5});
  EXPECT_EQ(Found({1, 2, 3, 4, 9}), "3@4");
  EXPECT_EQ(Found({1, 2, 9, 4, 9}), "2@2");  // the newer of equals
  // Position 0 has consumed nothing: no use to anybody.
  Save(4, nullptr, {7});
  EXPECT_EQ(Found({7, 8}), "");
  // What does not go on where its parent ended has no hash.
  SavedState other = ThreadState(5, &a.manifest, {});
  other.manifest.pending_token = 4;
  Apply(other);
  SavedState gap = ThreadState(6, &a.manifest, {4, 5});
  ++gap.manifest.position;
  Apply(gap);
  SavedState tail = ThreadState(7, &a.manifest, {4, 5, 6, 7});
  tail.manifest.pending_token = 8;
  Apply(tail);
  SavedState no_root = ThreadState(8, nullptr, {1, 2, 3, 4, 5, 6});
  no_root.manifest.position = 100;
  Apply(no_root);
  for (const uint64_t number : {5, 6, 7, 8}) {
    EXPECT_FALSE(store().GetManifest(kTenant, SampleId(number))->prefix_hash.has_value());
  }
  EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7, 8, 9}), "3@4");
}

TEST_P(PrefixSuite, NeverAnotherTenantsNorAnotherModels) {
  SavedState other = ThreadState(1, nullptr, {1, 2, 3, 4, 5});
  other.manifest.tenant = "other";
  Apply(other);
  PrefixQuery query = QueryOf({});
  const Ids prompt = {1, 2, 3, 4, 5};
  query.tokens = prompt;
  EXPECT_EQ(Text(Find(query)), "");
  EXPECT_EQ(Text(Find(query, "other")), "1@4");
  Save(2, nullptr, {1, 2, 3, 4});
  EXPECT_EQ(Text(Find(query)), "2@3");
  EXPECT_EQ(Text(Find(query, "other")), "1@4");
  EXPECT_EQ(Text(Find(query, "third")), "");
  for (std::string* field : {&query.identity.fingerprint, &query.identity.tokenizer_hash}) {
    const std::string before = *field;
    *field = "another";
    EXPECT_EQ(Text(Find(query)), "");
    EXPECT_THAT(Find(query).inexact_id, IsEmpty());
    *field = before;
  }
  EXPECT_EQ(store().FindPrefix("Not/a/tenant", query).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(PrefixSuite, OtherNumericsAndRoundedOnesAreNamedButNotUsed) {
  const SavedState a = Save(1, nullptr, {1, 2, 3, 4});
  SavedState cuda = ThreadState(2, nullptr, {1, 2, 3, 4, 5, 6});
  cuda.manifest.identity.numerics_id = "cuda/sm90/1";
  Apply(cuda);
  const Ids prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  PrefixMatch match = Find(QueryOf(prompt));
  EXPECT_EQ(Text(match), "1@3");
  EXPECT_EQ(match.inexact_id, SampleId(2));
  EXPECT_EQ(match.inexact_position, 5u);
  EXPECT_THAT(match.inexact_reason, HasSubstr("its numerics are cuda/sm90/1, here they are cpu/"));
  // Whatever was computed by way of it isn't exact either.
  SavedState child = ThreadState(3, &cuda.manifest, {7, 8});
  child.manifest.identity = a.manifest.identity;
  Apply(child);
  match = Find(QueryOf(prompt));
  EXPECT_EQ(Text(match), "1@3");
  EXPECT_EQ(match.inexact_position, 7u);
  EXPECT_THAT(match.inexact_reason, HasSubstr("cuda/sm90/1"));
  SavedState rounded = ThreadState(4, nullptr, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  rounded.manifest.codec = StateCodec::kBF16;
  Apply(rounded);
  match = Find(QueryOf(prompt));
  EXPECT_EQ(Text(match), "1@3");
  EXPECT_EQ(match.inexact_position, 8u);
  EXPECT_THAT(match.inexact_reason, HasSubstr("rounded"));
  SavedState heir = ThreadState(5, nullptr, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  heir.manifest.inherited_loss.max_absolute_error = 0.5;
  Apply(heir);
  EXPECT_EQ(Find(QueryOf(prompt)).inexact_position, 9u);
  // One of the same length that is exact: nothing is left to tell.
  SavedState zstd = ThreadState(6, nullptr, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  zstd.manifest.codec = StateCodec::kZstd;
  Apply(zstd);
  match = Find(QueryOf(prompt));
  EXPECT_EQ(Text(match), "6@9");
  EXPECT_THAT(match.inexact_id, IsEmpty());
  EXPECT_EQ(match.inexact_position, 0u);
}

TEST_P(PrefixSuite, DroppedAndExpiredOnesAreNotFoundButTheirDescendantsAre) {
  const SavedState a = Save(1, nullptr, {1, 2, 3, 4});
  SavedState b = ThreadState(2, &a.manifest, {5, 6});
  b.manifest.expires = harness_.clock().Now() + absl::Seconds(10);
  Apply(b);
  const SavedState c = Save(3, &b.manifest, {7, 8});
  const Ids prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const Ids middle = {1, 2, 3, 4, 5, 6, 0};
  EXPECT_EQ(Found(middle), "2@5");
  harness_.clock().Advance(absl::Seconds(10));
  EXPECT_EQ(Found(middle), "1@3");  // expired, not yet swept
  ASSERT_TRUE(store().DeleteState(kTenant, a.manifest.id).ok());
  EXPECT_EQ(Found(middle), "");
  EXPECT_EQ(Found(prompt), "3@7");
  ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
  harness_.Reopen();
  EXPECT_EQ(Found(middle), "");
  EXPECT_EQ(Found(prompt), "3@7");
  // A stream whose source is gone goes on from its manifest; its states are found as well.
  Save(4, &b.manifest, {7, 9, 8});
  EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7, 9, 9}), "4@8");
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(3)).ok());
  ASSERT_TRUE(store().DeleteState(kTenant, SampleId(4)).ok());
  EXPECT_EQ(Found(prompt), "");
  // Its last descendant took the chain along: nobody knows these tokens any more.
  Save(5, &b.manifest, {7, 8});
  EXPECT_EQ(Found(prompt), "");
}

TEST_P(PrefixSuite, ThinnedOnesAreNotFound) {
  SavedState snapshot = ThreadState(1, nullptr, {1, 2, 3, 4});
  snapshot.manifest.is_snapshot = true;
  Apply(snapshot);
  EXPECT_EQ(Found({1, 2, 3, 9}), "1@3");
  const SavedState next = ThreadState(2, &snapshot.manifest, {5, 6});
  Commit commit = CommitOf(next);
  commit.thinned = {SampleId(1)};
  ASSERT_TRUE(store().Apply(commit).ok());
  EXPECT_EQ(Found({1, 2, 3, 9}), "");
  EXPECT_EQ(Found({1, 2, 3, 4, 5, 9}), "2@5");
}

TEST_P(PrefixSuite, UpdatesAndHeadsLeaveAStateFindable) {
  const SavedState a = Save(1, nullptr, {1, 2, 3, 4});
  StateUpdate update;
  update.labels = Labels{{"kind", "new"}};
  update.expires = harness_.clock().Now() + absl::Seconds(5);
  ASSERT_TRUE(store().UpdateState(kTenant, a.manifest.id, update).ok());
  EXPECT_EQ(Found({1, 2, 3, 9}), "1@3");
  Commit commit;
  commit.tenant = kTenant;
  commit.head_move = Commit::HeadMove{"s", a.manifest.id, ""};
  ASSERT_TRUE(store().Apply(commit).ok());
  harness_.clock().Advance(absl::Seconds(5));
  EXPECT_EQ(Found({1, 2, 3, 9}), "1@3");  // heads don't expire
  ASSERT_TRUE(store().DeleteSession(kTenant, "s", "").ok());
  EXPECT_EQ(Found({1, 2, 3, 9}), "");
}

TEST_P(PrefixSuite, WhatTheCallerDidNotComputeIsNeverFound) {
  const SavedState import = ThreadState(1, nullptr, {1, 2, 3, 4});
  Apply(import, /*is_reusable=*/false);
  Save(2, &import.manifest, {5, 6});
  EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7}), "");
  // Nor is a state whose parent the store doesn't know, whatever the caller says of its hash.
  const SavedState unknown = ThreadState(50, nullptr, {1, 2, 3, 4});
  SavedState orphan = ThreadState(3, &unknown.manifest, {5, 6});
  orphan.manifest.prefix_hash = 7;
  Apply(orphan);
  Apply(unknown);
  EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7}), "50@3");
}

TEST_P(PrefixSuite, ParentAndChildInOneCommit) {
  const SavedState a = ThreadState(1, nullptr, {1, 2, 3, 4});
  const SavedState b = ThreadState(2, &a.manifest, {5, 6});
  Commit commit = CommitOf(a);
  commit.states.push_back({b.manifest, &b.slot});
  ASSERT_TRUE(store().Apply(commit).ok());
  EXPECT_EQ(Found({1, 2, 3, 4, 5, 6, 7}), "2@5");
}

TEST_P(PrefixSuite, SkippedOnesAreAsIfNotThere) {
  const SavedState a = Save(1, nullptr, {1, 2, 3, 4});
  Save(2, nullptr, {1, 2, 3, 4});
  Save(3, &a.manifest, {5, 6});
  const Ids prompt = {1, 2, 3, 4, 5, 6, 7};
  PrefixQuery query = QueryOf(prompt);
  EXPECT_EQ(Text(Find(query)), "3@5");
  query.skip = {SampleId(3)};
  EXPECT_EQ(Text(Find(query)), "2@3");
  query.skip = {SampleId(3), SampleId(2)};
  EXPECT_EQ(Text(Find(query)), "1@3");
  query.skip.push_back(SampleId(1));
  EXPECT_EQ(Text(Find(query)), "");
}

// As many ancestors as there may be, and one more.
TEST_P(PrefixSuite, AncestorsHaveABound) {
  std::vector<SavedState> states;
  Ids prompt = {0};
  states.push_back(ThreadState(0, nullptr, {0}));
  for (uint64_t i = 1; i <= kMaxPrefixAncestors + 1; ++i) {
    states.push_back(ThreadState(i, &states.back().manifest, {static_cast<int32_t>(i)}));
    prompt.push_back(static_cast<int32_t>(i));
  }
  Commit commit;
  commit.tenant = kTenant;
  for (const SavedState& state : states) {
    commit.states.push_back({state.manifest, &state.slot});
    if (commit.states.size() < kMaxCommitStates && &state != &states.back()) continue;
    ASSERT_TRUE(store().Apply(commit).ok());
    commit.states.clear();
  }
  prompt.push_back(7);
  EXPECT_EQ(Find(QueryOf(prompt)).position, kMaxPrefixAncestors);
}

INSTANTIATE_TEST_SUITE_P(Stores, PrefixSuite,
                         ::testing::Values(StoreKind::kMemory, StoreKind::kRocksDb),
                         [](const auto& info) {
                           return info.param == StoreKind::kMemory ? "Memory" : "RocksDb";
                         });

}  // namespace
}  // namespace vivarium::statestore
