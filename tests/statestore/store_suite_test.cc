// What every StateStore does, asked of both. Sessions and requests are in store_session_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "statestore/state_codec.h"
#include "statestore/state_validation.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class StoreSuite : public ::testing::TestWithParam<StoreKind> {
 protected:
  StateStore& store() { return harness_.store(); }
  absl::StatusCode LoadCode(const StateId& id, const std::string& tenant = kTenant) {
    return store().Load(tenant, id).status().code();
  }
  std::vector<StateId> Listed(const StateFilter& filter, int page_size = 100) {
    std::vector<StateId> ids;
    std::string token;
    do {
      absl::StatusOr<Page<StateManifest>> page =
          store().ListStates(kTenant, filter, page_size, token);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok()) break;
      EXPECT_LE(page->items.size(), static_cast<size_t>(page_size));
      for (const StateManifest& manifest : page->items) ids.push_back(manifest.id);
      token = page->next_page_token;
    } while (!token.empty());
    return ids;
  }
  std::vector<StateId> Ancestors(const StateId& id, size_t limit = 100) {
    std::vector<StateId> ids;
    absl::StatusOr<std::vector<StateManifest>> chain = store().Ancestry(kTenant, id, limit);
    EXPECT_TRUE(chain.ok()) << chain.status();
    if (!chain.ok()) return ids;
    for (const StateManifest& manifest : *chain) ids.push_back(manifest.id);
    return ids;
  }
  void Update(const StateId& id, const StateUpdate& update) {
    const absl::Status status = store().UpdateState(kTenant, id, update).status();
    EXPECT_TRUE(status.ok()) << status;
  }
  void ExpireIn(const StateId& id, absl::Duration duration) {
    StateUpdate update;
    update.expires = harness_.clock().Now() + duration;
    Update(id, update);
  }
  void Sweep() { EXPECT_TRUE(store().Sweep(harness_.clock().Now()).ok()); }

  StoreHarness harness_{GetParam()};
};

constexpr auto kOk = absl::StatusCode::kOk;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST_P(StoreSuite, AStateComesBackBitExact) {
  const SavedState saved = harness_.Save(1);
  for (int round = 0; round < 2; ++round) {
    const absl::StatusOr<SavedState> loaded = store().Load(kTenant, saved.manifest.id);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    ExpectSameState(*loaded, saved);
    EXPECT_GE(loaded->manifest.stored_bytes, saved.slot.size());
    EXPECT_TRUE(store().VerifyState(kTenant, saved.manifest.id).ok());
    const absl::StatusOr<StateManifest> manifest = store().GetManifest(kTenant, saved.manifest.id);
    ASSERT_TRUE(manifest.ok());
    StateManifest expected = saved.manifest;
    expected.transcript.clear();
    ExpectSameManifest(*manifest, expected);
    harness_.Reopen();
  }
}

TEST_P(StoreSuite, StatesOfEverySizeAroundAChunk) {
  uint64_t number = 1;
  for (uint64_t slot_bytes : {64, 192, 256, 320, 512, 576}) {
    SavedState state;
    ++number;
    state.manifest = SampleManifest(SampleId(number), number);
    state.manifest.layout = {1,
                             slot_bytes,
                             {{"layers.0.ssm",
                               kernels::DType::kF32,
                               {static_cast<int64_t>(slot_bytes / 4)},
                               0,
                               slot_bytes}}};
    state.slot = SampleSlot(state.manifest.layout, number);
    ASSERT_TRUE(store().Apply(CommitOf(state)).ok());
    const absl::StatusOr<SavedState> loaded = store().Load(kTenant, state.manifest.id);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    ExpectSameState(*loaded, state);
  }
}

TEST_P(StoreSuite, AnIdIsTakenOnce) {
  const SavedState first = harness_.Save(1);
  SavedState second = SampleState(first.manifest.id, 2);
  EXPECT_EQ(store().Apply(CommitOf(second)).code(), absl::StatusCode::kAlreadyExists);
  const absl::StatusOr<SavedState> loaded = store().Load(kTenant, first.manifest.id);
  ASSERT_TRUE(loaded.ok());
  ExpectSameState(*loaded, first);
}

TEST_P(StoreSuite, TenantsDontSeeEachOther) {
  const SavedState mine = harness_.Save(1, "", "s");
  SavedState other = SampleState(mine.manifest.id, 2);
  other.manifest.tenant = "other";
  EXPECT_EQ(LoadCode(mine.manifest.id, "other"), kNotFound);
  ASSERT_TRUE(store().Apply(CommitOf(other)).ok());
  ExpectSameState(*store().Load("other", mine.manifest.id), other);
  ExpectSameState(*store().Load(kTenant, mine.manifest.id), mine);
  EXPECT_EQ(store().GetSession("other", "s").status().code(), kNotFound);
  EXPECT_THAT(store().ListSessions("other", 10, "")->items, IsEmpty());
  EXPECT_EQ(store().DeleteState("other", mine.manifest.id).code(), kOk);
  EXPECT_EQ(LoadCode(mine.manifest.id), kOk);
}

TEST_P(StoreSuite, BadArgumentsAreRefused) {
  const SavedState state = SampleState(SampleId(1), 1);
  const auto code_after = [&](auto change) {
    Commit commit = CommitOf(state);
    change(commit);
    return store().Apply(commit).code();
  };
  engine::StateBuffer short_slot(64);
  EXPECT_EQ(code_after([](Commit& c) { c.tenant = "Default"; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.tenant = "other"; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.id = "st_1"; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].slot = nullptr; }), kInvalid);
  EXPECT_EQ(code_after([&](Commit& c) { c.states[0].slot = &short_slot; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states.push_back(c.states[0]); }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.parent_id = "x"; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.parent_id = SampleId(1); }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.session = "a b"; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.labels[""] = ""; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.created = absl::Time(); }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.bytes_dropped = true; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.text_tail = "abcd"; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.pending_token = -1; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.transcript[0].id = -5; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.states[0].manifest.sampling.top_p = NAN; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) {
              c.head_move = Commit::HeadMove{"", SampleId(1), "*"};
            }),
            kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.head_move = Commit::HeadMove{"s", "", "*"}; }), kInvalid);
  EXPECT_EQ(code_after([](Commit& c) { c.request = RequestRecord{"", "", "", {}}; }), kInvalid);
  EXPECT_EQ(LoadCode(SampleId(1)), kNotFound);
  EXPECT_EQ(LoadCode("st_1"), kInvalid);
  EXPECT_EQ(LoadCode(SampleId(1), ""), kInvalid);
  EXPECT_EQ(store().ListStates(kTenant, {}, 0, "").status().code(), kInvalid);
  EXPECT_EQ(store().ListStates(kTenant, {}, kMaxPageSize + 1, "").status().code(), kInvalid);
  EXPECT_EQ(store().DeleteState(kTenant, "").code(), kInvalid);
  EXPECT_EQ(store().GetSession(kTenant, "a/b").status().code(), kInvalid);
  EXPECT_EQ(store().Stats()->num_manifests, 0u);
}

TEST_P(StoreSuite, ACommitHasAtMostItsBoundOfStates) {
  std::vector<SavedState> states;
  Commit commit;
  commit.tenant = kTenant;
  for (uint64_t i = 0; i <= kMaxCommitStates; ++i) states.push_back(SampleState(SampleId(i), i));
  for (const SavedState& state : states) commit.states.push_back({state.manifest, &state.slot});
  EXPECT_EQ(store().Apply(commit).code(), kInvalid);
  commit.states.pop_back();
  EXPECT_EQ(store().Apply(commit).code(), kOk);
  EXPECT_EQ(Listed({}).size(), kMaxCommitStates);
}

TEST_P(StoreSuite, ListsNewestFirstByPages) {
  std::vector<StateId> newest_first;
  for (uint64_t i = 1; i <= 25; ++i) {
    newest_first.insert(newest_first.begin(), harness_.Save(i).manifest.id);
  }
  for (int page_size : {1, 7, 25, 26}) EXPECT_EQ(Listed({}, page_size), newest_first);
  // A page goes on after its last item, also when that item and newer ones change in between.
  const absl::StatusOr<Page<StateManifest>> page = store().ListStates(kTenant, {}, 10, "");
  ASSERT_TRUE(page.ok());
  ASSERT_TRUE(store().DeleteState(kTenant, page->items.back().id).ok());
  harness_.Save(26);
  const absl::StatusOr<Page<StateManifest>> next =
      store().ListStates(kTenant, {}, 100, page->next_page_token);
  ASSERT_TRUE(next.ok());
  ASSERT_EQ(next->items.size(), 15u);
  EXPECT_EQ(next->items[0].id, newest_first[10]);
}

TEST_P(StoreSuite, ListsByLabelSessionAndParent) {
  for (uint64_t i = 1; i <= 12; ++i) {
    harness_.Save(i, i % 2 == 0 ? SampleId(1) : "", i % 4 == 0 ? "four" : "");
  }
  EXPECT_THAT(Listed(FilterOf({{"n", "5"}})), ElementsAre(SampleId(5)));
  EXPECT_THAT(Listed(FilterOf({{"kind", "k0"}})),
              ElementsAre(SampleId(12), SampleId(9), SampleId(6), SampleId(3)));
  EXPECT_THAT(Listed(FilterOf({{"kind", "k0"}, {"n", "9"}})), ElementsAre(SampleId(9)));
  EXPECT_THAT(Listed(FilterOf({{"kind", "k"}})), IsEmpty());
  EXPECT_THAT(Listed(FilterOf({}, "four")), ElementsAre(SampleId(12), SampleId(8), SampleId(4)));
  EXPECT_THAT(
      Listed(FilterOf({}, "", SampleId(1)), 2),
      ElementsAre(SampleId(12), SampleId(10), SampleId(8), SampleId(6), SampleId(4), SampleId(2)));
  EXPECT_THAT(Listed(FilterOf({{"kind", "k0"}}, "four", SampleId(1))), ElementsAre(SampleId(12)));
  EXPECT_THAT(Listed(FilterOf({}, "fou")), IsEmpty());
}

TEST_P(StoreSuite, PageTokensAreGoodForTheirListOnly) {
  for (uint64_t i = 1; i <= 5; ++i) harness_.Save(i, "", "s" + std::to_string(i));
  const std::string token = store().ListStates(kTenant, {}, 2, "")->next_page_token;
  ASSERT_FALSE(token.empty());
  const auto code = [&](const StateFilter& filter, const std::string& page_token) {
    return store().ListStates(kTenant, filter, 2, page_token).status().code();
  };
  EXPECT_EQ(code({}, token), kOk);
  EXPECT_EQ(code(FilterOf({}, "s1"), token), kInvalid);
  EXPECT_EQ(code(WithDropped(), token), kInvalid);
  EXPECT_EQ(store().ListStates("other", {}, 2, token).status().code(), kInvalid);
  EXPECT_EQ(store().ListSessions(kTenant, 2, token).status().code(), kInvalid);
  for (const std::string& bad :
       {std::string("x"), std::string("zz"), token + "00", token.substr(2),
        token.substr(0, token.size() - 2) + "00", std::string(100'000, 'a')}) {
    EXPECT_EQ(code({}, bad), kInvalid) << bad.substr(0, 40);
  }
}

TEST_P(StoreSuite, UpdatesLabelsPinAndExpiry) {
  harness_.Save(1);
  harness_.Save(2);
  StateUpdate update;
  update.labels = Labels{{"kind", "new"}};
  update.pinned = true;
  update.expires = harness_.clock().Now() + absl::Hours(1);
  const absl::StatusOr<StateManifest> updated = store().UpdateState(kTenant, SampleId(1), update);
  ASSERT_TRUE(updated.ok());
  EXPECT_EQ(updated->labels, *update.labels);
  harness_.Reopen();
  StateManifest expected = SampleManifest(SampleId(1), 1);
  expected.transcript.clear();  // GetManifest leaves it out
  expected.labels = *update.labels;
  expected.pinned = true;
  expected.expires = *update.expires;
  ExpectSameManifest(*store().GetManifest(kTenant, SampleId(1)), expected);
  EXPECT_THAT(Listed(FilterOf({{"kind", "new"}})), ElementsAre(SampleId(1)));
  EXPECT_THAT(Listed(FilterOf({{"kind", "k1"}})), IsEmpty());
  // Untouched fields stay.
  StateUpdate unpin;
  unpin.pinned = false;
  Update(SampleId(1), unpin);
  EXPECT_EQ(store().GetManifest(kTenant, SampleId(1))->expires, *update.expires);
  EXPECT_EQ(store().UpdateState(kTenant, SampleId(9), unpin).status().code(), kNotFound);
  update.labels = Labels{{"", ""}};
  EXPECT_EQ(store().UpdateState(kTenant, SampleId(1), update).status().code(), kInvalid);
}

TEST_P(StoreSuite, ADeletedLeafIsGone) {
  harness_.Save(1);
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(1)).code(), kOk);
  EXPECT_EQ(LoadCode(SampleId(1)), kNotFound);
  EXPECT_EQ(store().VerifyState(kTenant, SampleId(1)).code(), kNotFound);
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(1)).code(), kNotFound);
  EXPECT_EQ(store().Ancestry(kTenant, SampleId(1), 5).status().code(), kNotFound);
  EXPECT_THAT(Listed(WithDropped()), IsEmpty());
  const absl::StatusOr<StoreStats> stats = store().Stats();
  EXPECT_EQ(stats->num_manifests, 0u);
  EXPECT_EQ(stats->live_bytes, 0u);
}

TEST_P(StoreSuite, ADeletedAncestorLeavesItsHistory) {
  harness_.Save(1);
  harness_.Save(2, SampleId(1));
  harness_.Save(3, SampleId(2));
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(2)).code(), kOk);
  EXPECT_EQ(LoadCode(SampleId(2)), kNotFound);
  EXPECT_EQ(store().GetManifest(kTenant, SampleId(2)).status().code(), kNotFound);
  EXPECT_EQ(LoadCode(SampleId(3)), kOk);
  EXPECT_THAT(Ancestors(SampleId(3)), ElementsAre(SampleId(3), SampleId(2), SampleId(1)));
  const absl::StatusOr<std::vector<StateManifest>> chain =
      store().Ancestry(kTenant, SampleId(3), 2);
  ASSERT_EQ(chain->size(), 2u);
  EXPECT_TRUE((*chain)[1].bytes_dropped);
  EXPECT_EQ((*chain)[1].stored_bytes, 0u);
  EXPECT_EQ((*chain)[1].transcript, SampleManifest(SampleId(2), 2).transcript);
  EXPECT_THAT(Listed({}), ElementsAre(SampleId(3), SampleId(1)));
  EXPECT_THAT(Listed(WithDropped()), ElementsAre(SampleId(3), SampleId(2), SampleId(1)));
  EXPECT_EQ(store().Stats()->num_states, 2u);
  EXPECT_EQ(store().Stats()->num_manifests, 3u);
  // With its last descendant the dropped one goes too; the live grandparent stays.
  harness_.Reopen();
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(3)).code(), kOk);
  EXPECT_THAT(Listed(WithDropped()), ElementsAre(SampleId(1)));
  EXPECT_EQ(store().Stats()->num_manifests, 1u);
}

TEST_P(StoreSuite, ADroppedParentOfTwoStaysForTheSecond) {
  harness_.Save(1);
  harness_.Save(2, SampleId(1));
  harness_.Save(3, SampleId(1));
  for (uint64_t i : {1, 2}) EXPECT_EQ(store().DeleteState(kTenant, SampleId(i)).code(), kOk);
  EXPECT_THAT(Ancestors(SampleId(3)), ElementsAre(SampleId(3), SampleId(1)));
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(3)).code(), kOk);
  EXPECT_EQ(store().Stats()->num_manifests, 0u);
}

TEST_P(StoreSuite, ALongDroppedChainGoesWhole) {
  constexpr uint64_t kLength = 600;  // more than the durable store removes in one batch
  harness_.Save(1);
  for (uint64_t i = 2; i <= kLength; ++i) harness_.Save(i, SampleId(i - 1));
  for (uint64_t i = 1; i < kLength; ++i)
    ASSERT_TRUE(store().DeleteState(kTenant, SampleId(i)).ok());
  EXPECT_EQ(Ancestors(SampleId(kLength), kLength + 1).size(), kLength);
  EXPECT_EQ(store().Stats()->num_manifests, kLength);
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(kLength)).code(), kOk);
  EXPECT_EQ(store().Stats()->num_manifests, 0u);
  EXPECT_THAT(Listed(WithDropped()), IsEmpty());
}

// What a commit thins: bytes go, the history stays; whatever somebody wants is left alone.
TEST_P(StoreSuite, ACommitThinsSnapshotsAndNothingElse) {
  enum : uint64_t { kPlain = 1, kSnapshot, kUpdated, kSecond, kHead, kLast, kNew, kLeaf, kPinned };
  for (uint64_t number = kPlain; number <= kLast; ++number) {
    SavedState state = SampleState(SampleId(number), number);
    if (number > kPlain) state.manifest.parent_id = SampleId(number - 1);
    state.manifest.is_snapshot = number != kPlain;
    ASSERT_TRUE(store().Apply(CommitOf(state)).ok());
  }
  SavedState leaf = SampleState(SampleId(kLeaf), kLeaf);
  leaf.manifest.is_snapshot = true;
  ASSERT_TRUE(store().Apply(CommitOf(leaf)).ok());
  Update(SampleId(kUpdated), {});
  EXPECT_FALSE(store().GetManifest(kTenant, SampleId(kUpdated))->is_snapshot);
  SavedState pinned = SampleState(SampleId(kPinned), kPinned);
  pinned.manifest.is_snapshot = true;
  pinned.manifest.pinned = true;
  ASSERT_TRUE(store().Apply(CommitOf(pinned)).ok());
  Commit head;
  head.tenant = kTenant;
  head.head_move = Commit::HeadMove{"s", SampleId(kHead), ""};
  ASSERT_TRUE(store().Apply(head).ok());

  SavedState next = SampleState(SampleId(kNew), kNew);
  next.manifest.parent_id = SampleId(kLast);
  Commit commit = CommitOf(next);
  for (uint64_t number = kPlain; number <= kLast; ++number) {
    commit.thinned.push_back(SampleId(number));
  }
  for (uint64_t number : {uint64_t{kLeaf}, uint64_t{kPinned}, uint64_t{99}, uint64_t{kSnapshot}}) {
    commit.thinned.push_back(SampleId(number));
  }
  const uint64_t num_states = store().Stats()->num_states;
  ASSERT_TRUE(store().Apply(commit).ok());
  harness_.Reopen();
  EXPECT_EQ(LoadCode(SampleId(kPlain)), kOk);
  EXPECT_EQ(LoadCode(SampleId(kSnapshot)), kNotFound);
  EXPECT_EQ(LoadCode(SampleId(kUpdated)), kOk);
  EXPECT_EQ(LoadCode(SampleId(kSecond)), kNotFound);
  EXPECT_EQ(LoadCode(SampleId(kHead)), kOk);
  EXPECT_EQ(LoadCode(SampleId(kLast)), kNotFound);  // the parent of the commit's own state
  EXPECT_EQ(LoadCode(SampleId(kLeaf)), kOk);        // nobody descends from it
  EXPECT_EQ(LoadCode(SampleId(kPinned)), kOk);
  EXPECT_EQ(store().Stats()->num_states, num_states - 3 + 1);
  EXPECT_THAT(Ancestors(SampleId(kNew)),
              ElementsAre(SampleId(kNew), SampleId(kLast), SampleId(kHead), SampleId(kSecond),
                          SampleId(kUpdated), SampleId(kSnapshot), SampleId(kPlain)));
}

TEST_P(StoreSuite, ARefusedCommitThinsNothing) {
  SavedState snapshot = SampleState(SampleId(1), 1);
  snapshot.manifest.is_snapshot = true;
  ASSERT_TRUE(store().Apply(CommitOf(snapshot)).ok());
  SavedState next = SampleState(SampleId(2), 2);
  next.manifest.parent_id = SampleId(1);
  Commit commit = CommitOf(next);
  commit.thinned = {SampleId(1)};
  commit.head_move = Commit::HeadMove{"s", SampleId(2), "stale"};
  EXPECT_EQ(store().Apply(commit).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(LoadCode(SampleId(1)), kOk);
  // The commit's own head is not thinned by it, nor its own states.
  commit.head_move = Commit::HeadMove{"s", SampleId(1), ""};
  EXPECT_EQ(store().Apply(commit).code(), kOk);
  EXPECT_EQ(LoadCode(SampleId(1)), kOk);
  SavedState third = SampleState(SampleId(3), 3);
  commit = CommitOf(third);
  commit.thinned = {SampleId(3)};
  EXPECT_EQ(store().Apply(commit).code(), kInvalid);
  commit.thinned.assign(kMaxSnapshotRefs + 1, SampleId(1));
  EXPECT_EQ(store().Apply(commit).code(), kInvalid);
  commit.thinned.pop_back();
  EXPECT_EQ(store().Apply(commit).code(), kOk);
}

TEST_P(StoreSuite, AnUnknownParentEndsTheHistory) {
  harness_.Save(5, SampleId(4));
  EXPECT_THAT(Ancestors(SampleId(5)), ElementsAre(SampleId(5)));
  EXPECT_THAT(Ancestors(SampleId(5), 0), IsEmpty());
}

TEST_P(StoreSuite, PinnedStatesAndHeadsAreNotDeleted) {
  harness_.Save(1, "", "main");
  harness_.Save(2);
  StateUpdate update;
  update.pinned = true;
  Update(SampleId(2), update);
  const absl::Status head = store().DeleteState(kTenant, SampleId(1));
  EXPECT_EQ(head.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(head.message()), HasSubstr("main"));
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(2)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(LoadCode(SampleId(1)), kOk);
  EXPECT_EQ(LoadCode(SampleId(2)), kOk);
}

TEST_P(StoreSuite, ExpiryTakesEffectBeforeTheSweep) {
  harness_.Save(1);
  harness_.Save(2, SampleId(1));
  ExpireIn(SampleId(1), absl::Minutes(1));
  ExpireIn(SampleId(2), absl::Minutes(2));
  harness_.clock().Advance(absl::Minutes(1) - absl::Milliseconds(1));
  EXPECT_EQ(LoadCode(SampleId(1)), kOk);
  harness_.clock().Advance(absl::Milliseconds(1));
  EXPECT_EQ(LoadCode(SampleId(1)), kNotFound);
  EXPECT_EQ(store().UpdateState(kTenant, SampleId(1), {}).status().code(), kNotFound);
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(1)).code(), kNotFound);
  EXPECT_THAT(Listed({}), ElementsAre(SampleId(2)));
  EXPECT_THAT(Ancestors(SampleId(2)), ElementsAre(SampleId(2), SampleId(1)));
  const uint64_t live_bytes = store().Stats()->live_bytes;
  Sweep();
  EXPECT_EQ(harness_.events().num_expired, 1u);
  EXPECT_EQ(store().Stats()->live_bytes, live_bytes / 2);
  EXPECT_THAT(Ancestors(SampleId(2)), ElementsAre(SampleId(2), SampleId(1)));
  harness_.clock().Advance(absl::Minutes(1));
  Sweep();
  EXPECT_EQ(store().Stats()->num_manifests, 0u);
  Sweep();
  EXPECT_EQ(harness_.events().num_expired, 2u);
}

TEST_P(StoreSuite, PinnedStatesDontExpire) {
  harness_.Save(1);
  ExpireIn(SampleId(1), absl::Minutes(1));
  StateUpdate update;
  update.pinned = true;
  Update(SampleId(1), update);
  harness_.clock().Advance(absl::Hours(1));
  Sweep();
  EXPECT_EQ(LoadCode(SampleId(1)), kOk);
  update.pinned = false;
  Update(SampleId(1), update);
  EXPECT_EQ(LoadCode(SampleId(1)), kNotFound);
  Sweep();
  EXPECT_EQ(store().Stats()->num_manifests, 0u);
}

TEST_P(StoreSuite, CountsWhatItHolds) {
  uint64_t stored_bytes = 0;
  for (uint64_t i = 1; i <= 5; ++i) {
    harness_.Save(i, "", "s" + std::to_string(i % 2));
    stored_bytes += store().GetManifest(kTenant, SampleId(i))->stored_bytes;
  }
  for (int round = 0; round < 2; ++round) {
    const absl::StatusOr<StoreStats> stats = store().Stats();
    ASSERT_TRUE(stats.ok());
    EXPECT_EQ(stats->num_states, 5u);
    EXPECT_EQ(stats->num_manifests, 5u);
    EXPECT_EQ(stats->num_sessions, 2u);
    EXPECT_EQ(stats->live_bytes, stored_bytes);
    harness_.Reopen();
  }
  EXPECT_EQ(harness_.events().num_commits, 5);
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreSuite,
                         ::testing::Values(StoreKind::kMemory, StoreKind::kRocksDb,
                                           StoreKind::kCached),
                         [](const auto& info) { return NameOf(info.param); });

}  // namespace
}  // namespace vivarium::statestore
