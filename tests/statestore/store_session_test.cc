// Sessions, etags, recent heads and finished requests, asked of both stores.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr auto kOk = absl::StatusCode::kOk;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kAborted = absl::StatusCode::kAborted;
constexpr auto kAlreadyExists = absl::StatusCode::kAlreadyExists;

class StoreSessions : public ::testing::TestWithParam<StoreKind> {
 protected:
  StateStore& store() { return harness_.store(); }
  absl::Status Move(const std::string& session, const StateId& head, const std::string& etag) {
    Commit commit;
    commit.tenant = kTenant;
    commit.head_move = Commit::HeadMove{session, head, etag};
    return store().Apply(commit);
  }
  Session Get(const std::string& name) {
    absl::StatusOr<Session> session = store().GetSession(kTenant, name);
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *session : Session();
  }
  absl::Status Finish(const std::string& id, const std::string& hash, absl::Duration ttl,
                      uint64_t state_number = 0) {
    const SavedState state = SampleState(SampleId(state_number), state_number);
    Commit commit;
    if (state_number != 0) commit = CommitOf(state);
    commit.tenant = kTenant;
    commit.request = RequestRecord{id, hash, "result of " + id, harness_.clock().Now() + ttl};
    return store().Apply(commit);
  }

  StoreHarness harness_{GetParam()};
};

TEST_P(StoreSessions, TheHeadMovesWithItsState) {
  harness_.Save(1, "", "s");
  const Session first = Get("s");
  EXPECT_EQ(first.head, SampleId(1));
  EXPECT_EQ(first.created, harness_.clock().Now());
  harness_.clock().Advance(absl::Seconds(5));
  harness_.Save(2, SampleId(1), "s");
  harness_.Reopen();
  const Session second = Get("s");
  EXPECT_EQ(second.head, SampleId(2));
  EXPECT_THAT(second.recent_heads, ElementsAre(SampleId(2), SampleId(1)));
  EXPECT_EQ(second.created, first.created);
  EXPECT_EQ(second.updated, first.created + absl::Seconds(5));
  EXPECT_NE(second.etag, first.etag);
}

TEST_P(StoreSessions, EtagsDecide) {
  harness_.Save(1);
  harness_.Save(2);
  EXPECT_EQ(Move("s", SampleId(1), "some").code(), kAborted);
  EXPECT_EQ(Move("s", SampleId(1), "").code(), kOk);
  EXPECT_EQ(Move("s", SampleId(2), "").code(), kAlreadyExists);
  const std::string etag = Get("s").etag;
  EXPECT_EQ(Move("s", SampleId(2), etag).code(), kOk);
  EXPECT_EQ(Move("s", SampleId(1), etag).code(), kAborted);
  EXPECT_EQ(Move("s", SampleId(1), "*").code(), kOk);
  EXPECT_EQ(Move("s", SampleId(9), "*").code(), kNotFound);
  EXPECT_EQ(Get("s").head, SampleId(1));
  // A session made anew under an old name has a new etag.
  EXPECT_EQ(store().DeleteSession(kTenant, "s", etag).code(), kAborted);
  const std::string last_etag = Get("s").etag;
  EXPECT_EQ(store().DeleteSession(kTenant, "s", last_etag).code(), kOk);
  EXPECT_EQ(store().DeleteSession(kTenant, "s", "").code(), kNotFound);
  EXPECT_EQ(Move("s", SampleId(1), last_etag).code(), kAborted);
  EXPECT_EQ(Move("s", SampleId(1), "").code(), kOk);
  EXPECT_NE(Get("s").etag, last_etag);
}

TEST_P(StoreSessions, ARefusedMoveSavesNothing) {
  harness_.Save(1, "", "s");
  const SavedState state = SampleState(SampleId(2), 2);
  Commit commit = CommitOf(state);
  commit.head_move = Commit::HeadMove{"s", SampleId(2), "stale"};
  commit.request = RequestRecord{"r", "h", "", absl::InfiniteFuture()};
  EXPECT_EQ(store().Apply(commit).code(), kAborted);
  harness_.Reopen();
  EXPECT_EQ(store().Load(kTenant, SampleId(2)).status().code(), kNotFound);
  EXPECT_EQ(store().GetRequest(kTenant, "r").status().code(), kNotFound);
  EXPECT_EQ(Get("s").head, SampleId(1));
  EXPECT_EQ(store().Stats()->num_manifests, 1u);
  EXPECT_EQ(harness_.events().num_failed_commits, 1);
  // The same id can be saved later.
  commit.head_move->expected_etag = Get("s").etag;
  EXPECT_EQ(store().Apply(commit).code(), kOk);
  ExpectSameState(*store().Load(kTenant, SampleId(2)), state);
}

TEST_P(StoreSessions, KeepsItsLastHeadsFromExpiry) {
  for (uint64_t i = 1; i <= kDefaultHeadHistory + 1; ++i) {
    harness_.Save(i, i == 1 ? "" : SampleId(i - 1), "s");
    StateUpdate update;
    update.expires = harness_.clock().Now() + absl::Minutes(1);
    ASSERT_TRUE(store().UpdateState(kTenant, SampleId(i), update).ok());
  }
  harness_.clock().Advance(absl::Hours(1));
  ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
  harness_.Reopen();
  EXPECT_EQ(harness_.events().num_expired, 1u);
  EXPECT_EQ(store().Load(kTenant, SampleId(1)).status().code(), kNotFound);
  EXPECT_EQ(Get("s").recent_heads.size(), kDefaultHeadHistory);
  for (uint64_t i = 2; i <= kDefaultHeadHistory + 1; ++i) {
    EXPECT_EQ(store().Load(kTenant, SampleId(i)).status().code(), kOk) << i;
  }
  // Back to an earlier one: it is the newest head then, once.
  EXPECT_EQ(Move("s", SampleId(5), "*").code(), kOk);
  EXPECT_EQ(Get("s").recent_heads.front(), SampleId(5));
  EXPECT_EQ(Get("s").recent_heads.size(), kDefaultHeadHistory);
  // Without the session nothing keeps them.
  EXPECT_EQ(store().DeleteSession(kTenant, "s", "*").code(), kOk);
  EXPECT_EQ(store().Load(kTenant, SampleId(5)).status().code(), kNotFound);
  ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
  EXPECT_EQ(store().Stats()->num_manifests, 0u);
}

TEST_P(StoreSessions, ADeletedStateLeavesTheRecentHeads) {
  for (uint64_t i = 1; i <= 3; ++i) harness_.Save(i, i == 1 ? "" : SampleId(i - 1), "s");
  const std::string etag = Get("s").etag;
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(2)).code(), kOk);
  EXPECT_THAT(Get("s").recent_heads, ElementsAre(SampleId(3), SampleId(1)));
  EXPECT_EQ(Get("s").etag, etag);
  EXPECT_EQ(Move("s", SampleId(2), "*").code(), kNotFound);
}

TEST_P(StoreSessions, StatesOutliveTheirSession) {
  harness_.Save(1, "", "s");
  EXPECT_EQ(store().DeleteSession(kTenant, "s", "").code(), kOk);
  EXPECT_EQ(store().GetSession(kTenant, "s").status().code(), kNotFound);
  EXPECT_EQ(store().Load(kTenant, SampleId(1)).status().code(), kOk);
  EXPECT_EQ(store().Stats()->num_sessions, 0u);
  EXPECT_EQ(store().DeleteState(kTenant, SampleId(1)).code(), kOk);
}

TEST_P(StoreSessions, ListsByName) {
  harness_.Save(1);
  std::vector<std::string> names = {"A", "Z", "a", "a-", "a.b", "b", "b0"};
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    ASSERT_TRUE(Move(*name, SampleId(1), "").ok());
  }
  std::sort(names.begin(), names.end());
  for (int page_size : {1, 3, 7, 8}) {
    std::vector<std::string> found;
    std::string token;
    do {
      const absl::StatusOr<Page<Session>> page = store().ListSessions(kTenant, page_size, token);
      ASSERT_TRUE(page.ok()) << page.status();
      for (const Session& session : page->items) found.push_back(session.name);
      token = page->next_page_token;
    } while (!token.empty());
    EXPECT_EQ(found, names);
  }
  EXPECT_EQ(store().ListSessions(kTenant, 0, "").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(StoreSessions, FinishedRequestsAnswerUntilTheyExpire) {
  EXPECT_EQ(Finish("r1", "h1", absl::Hours(1), 1).code(), kOk);
  harness_.Reopen();
  const absl::StatusOr<RequestRecord> record = store().GetRequest(kTenant, "r1");
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->result, "result of r1");
  EXPECT_EQ(record->request_hash, "h1");
  EXPECT_EQ(store().GetRequest("other", "r1").status().code(), kNotFound);
  EXPECT_EQ(Finish("r1", "h1", absl::Hours(1), 2).code(), kAlreadyExists);
  EXPECT_EQ(Finish("r1", "h2", absl::Hours(1), 2).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store().Load(kTenant, SampleId(2)).status().code(), kNotFound);
  harness_.clock().Advance(absl::Hours(1));
  EXPECT_EQ(store().GetRequest(kTenant, "r1").status().code(), kNotFound);
  EXPECT_EQ(Finish("r1", "h2", absl::Hours(1), 2).code(), kOk);
  EXPECT_EQ(store().GetRequest(kTenant, "r1")->request_hash, "h2");
  harness_.clock().Advance(absl::Minutes(59));
  ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
  EXPECT_EQ(store().GetRequest(kTenant, "r1").status().code(), kOk);
}

TEST_P(StoreSessions, ABinaryRequestIdIsItsOwnKey) {
  const std::string id("a/b\0\xff", 5);
  EXPECT_EQ(Finish(id, "h", absl::Hours(1)).code(), kOk);
  EXPECT_EQ(Finish("a", "h", absl::Hours(1)).code(), kOk);
  EXPECT_EQ(store().GetRequest(kTenant, id)->result, "result of " + id);
  harness_.clock().Advance(absl::Hours(2));
  ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
  EXPECT_EQ(Finish(id, "other", absl::Hours(1)).code(), kOk);
}

// Of writers that saw the same etag one wins; every winner's state is the head it says.
TEST_P(StoreSessions, OneOfManyWritersWins) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 40;
  harness_.Save(1, "", "s");
  std::atomic<int> num_won{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        const uint64_t number = 100 + static_cast<uint64_t>(t) * kRounds + round;
        const Session before = *store().GetSession(kTenant, "s");
        SavedState state = SampleState(SampleId(number), number);
        state.manifest.parent_id = before.head;
        Commit commit = CommitOf(state);
        commit.head_move = Commit::HeadMove{"s", SampleId(number), before.etag};
        const absl::Status status = store().Apply(commit);
        const absl::StatusCode loaded = store().Load(kTenant, SampleId(number)).status().code();
        if (status.ok()) {
          ++num_won;
          EXPECT_EQ(loaded, kOk);
        } else {
          EXPECT_EQ(status.code(), kAborted) << status;
          EXPECT_EQ(loaded, kNotFound);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(num_won, kRounds);
  // The winners form one chain: no move was lost.
  const absl::StatusOr<std::vector<StateManifest>> chain =
      store().Ancestry(kTenant, Get("s").head, 10'000);
  ASSERT_TRUE(chain.ok());
  EXPECT_EQ(chain->size(), static_cast<size_t>(num_won.load()) + 1);
  EXPECT_EQ(store().Stats()->num_states, chain->size());
}

// Saves, deletions, updates, sweeps and reads beside each other: every answer is a legal one, and
// the books agree in the end.
TEST_P(StoreSessions, EverythingAtOnce) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 60;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const std::string session = "s" + std::to_string(t % 2);
      for (int round = 0; round < kRounds; ++round) {
        const uint64_t number = 1 + static_cast<uint64_t>(t) * kRounds + round;
        SavedState state = SampleState(SampleId(number), number);
        if (round > 0) state.manifest.parent_id = SampleId(number - 1);
        if (round % 5 == 4) state.manifest.expires = harness_.clock().Now();
        Commit commit = CommitOf(state);
        commit.head_move = Commit::HeadMove{session, SampleId(number), "*"};
        ASSERT_TRUE(store().Apply(commit).ok());
        if (round % 3 == 2) (void)store().DeleteState(kTenant, SampleId(number - 2));
        if (round % 7 == 6) {
          ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
        }
        StateUpdate update;
        update.labels = Labels{{"t", std::to_string(t)}};
        (void)store().UpdateState(kTenant, SampleId(number), update);
        const absl::StatusOr<SavedState> loaded = store().Load(kTenant, SampleId(number));
        if (loaded.ok()) {
          EXPECT_EQ(loaded->slot.size(), state.slot.size());
        } else {
          EXPECT_EQ(loaded.status().code(), kNotFound) << loaded.status();
        }
        ASSERT_TRUE(store().ListStates(kTenant, FilterOf(*update.labels), 10, "").ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int round = 0; round < 2; ++round) {
    StateFilter all;
    all.include_dropped = true;
    const absl::StatusOr<Page<StateManifest>> page = store().ListStates(kTenant, all, 1000, "");
    ASSERT_TRUE(page.ok()) << page.status();
    size_t num_states = 0;
    for (const StateManifest& manifest : page->items) num_states += manifest.bytes_dropped ? 0 : 1;
    ASSERT_TRUE(store().Sweep(harness_.clock().Now()).ok());
    EXPECT_EQ(store().Stats()->num_states, num_states);
    for (const StateManifest& manifest : page->items) {
      if (manifest.bytes_dropped) continue;
      EXPECT_TRUE(store().VerifyState(kTenant, manifest.id).ok());
    }
    harness_.Reopen();
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreSessions,
                         ::testing::Values(StoreKind::kMemory, StoreKind::kRocksDb,
                                           StoreKind::kCached),
                         [](const auto& info) { return NameOf(info.param); });

}  // namespace
}  // namespace vivarium::statestore
