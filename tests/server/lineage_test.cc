// What a state hands on to those computed from it: losses, snapshots.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "statestore/snapshot_thinning.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using statestore::StateManifest;
using testing::HasSubstr;

constexpr uint32_t kEvery = 16;

class LineageTest : public ServiceTest {
 protected:
  LineageTest() = default;
  explicit LineageTest(const ServerOptions& options) : ServiceTest(options) {}

  // Goes on with session `name`, with nothing new to read where it exists: calls in a row are one
  // thread, as if without pause.
  Answer GoOn(const std::string& name, int max_tokens, uint32_t keep) {
    v1::GenerateRequest request = Request(max_tokens);
    request.set_session(name);
    if (store_.GetSession(DefaultTenant(), name).ok()) request.clear_token_ids();
    request.mutable_save()->set_at_end(true);
    request.mutable_save()->set_every_tokens(kEvery);
    request.mutable_save()->set_keep_snapshots(keep);
    std::atomic<bool> is_over{false};
    std::thread pace([&] { KeepPace(&is_over); });
    Answer answer = Generate(request);
    is_over = true;
    pace.join();
    engine_->AllowAllTokens();
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    return answer;
  }

  // The engine is no faster than the store: hardly a snapshot is skipped.
  void KeepPace(const std::atomic<bool>* is_over) {
    while (!*is_over) {
      const uint64_t num_before = store_.Stats()->num_manifests;
      engine_->AllowTokens(kEvery);
      for (int i = 0; i < 100 && !*is_over && store_.Stats()->num_manifests == num_before; ++i) {
        absl::SleepFor(absl::Microseconds(100));
      }
    }
  }

  // The thread of session `name`, its head first.
  std::vector<StateManifest> Thread(const std::string& name) {
    const auto session = store_.GetSession(DefaultTenant(), name);
    EXPECT_TRUE(session.ok());
    auto chain = store_.Ancestry(DefaultTenant(), session->head, 1'000'000);
    EXPECT_TRUE(chain.ok());
    return *std::move(chain);
  }

  static std::vector<StateManifest> LiveSnapshots(const std::vector<StateManifest>& thread) {
    std::vector<StateManifest> live;
    for (const StateManifest& state : thread) {
      if (state.is_snapshot && !state.bytes_dropped) live.push_back(state);
    }
    return live;
  }

  // All tokens of a thread, the pending one included.
  static std::vector<int32_t> TokensOf(const std::vector<StateManifest>& thread) {
    std::vector<int32_t> tokens;
    for (auto state = thread.rbegin(); state != thread.rend(); ++state) {
      for (const auto& token : state->transcript) tokens.push_back(token.id);
    }
    return tokens;
  }

  // What comes after `state`, with nothing new to read.
  std::vector<int32_t> After(const StateManifest& state, int num_tokens) {
    v1::GenerateRequest request = Request(num_tokens);
    request.clear_token_ids();
    request.set_state_id(state.id);
    const Answer answer = Generate(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    return answer.token_ids;
  }

  grpc::Status Rewind(const v1::RewindSessionRequest& request, v1::Session* session) {
    grpc::ClientContext context;
    return sessions_stub_->RewindSession(&context, request, session);
  }

  // A state as it would be had storing it lost `loss`.
  std::string SaveRounded(const statestore::StorageLoss& loss) {
    v1::GenerateRequest request = Request(2);
    request.mutable_save()->set_at_end(true);
    auto saved = store_.Load(DefaultTenant(), Generate(request).finished.state().id());
    EXPECT_TRUE(saved.ok()) << saved.status();
    saved->manifest.id = ids_.NextStateId();
    saved->manifest.loss = loss;
    statestore::Commit commit;
    commit.tenant = DefaultTenant();
    commit.states.push_back({saved->manifest, &saved->slot});
    EXPECT_TRUE(store_.Apply(commit).ok());
    return saved->manifest.id;
  }
};

TEST_F(LineageTest, WhatFollowsFromRoundedNumbersSaysSo) {
  v1::GenerateRequest request = Request(20);
  request.mutable_save()->set_at_end(true);
  request.mutable_save()->set_every_tokens(16);
  const Answer exact = Generate(request);
  EXPECT_EQ(exact.finished.state().inherited_absolute_error(), 0);
  request.set_state_id(exact.finished.state().id());
  EXPECT_FALSE(Generate(request).started.numerics_changed());

  request.set_state_id(SaveRounded({0.5, 0.125}));
  const Answer child = Generate(request);
  EXPECT_TRUE(child.started.numerics_changed());
  ASSERT_FALSE(child.saved.empty());
  for (const v1::State& state : {child.saved[0], child.finished.state()}) {
    EXPECT_EQ(state.codec(), "raw");
    EXPECT_EQ(state.max_absolute_error(), 0);  // it was stored exactly
    EXPECT_EQ(state.inherited_absolute_error(), 0.5);
    EXPECT_EQ(state.inherited_relative_error(), 0.125);
  }
  // So does whatever is computed from that, however far down.
  request.set_state_id(child.finished.state().id());
  const Answer grandchild = Generate(request);
  EXPECT_TRUE(grandchild.started.numerics_changed());
  EXPECT_THAT(grandchild.started.reuse_explanation(), HasSubstr("off by up to 0.5"));
  EXPECT_EQ(grandchild.finished.state().inherited_absolute_error(), 0.5);
}

TEST_F(LineageTest, ALongThreadKeepsAFewSnapshotsAndGoesOnFromEachOfThem) {
  constexpr uint32_t kKeep = 4;
  size_t num_taken = 0;
  for (int call = 0; call < 6; ++call) {
    num_taken += GoOn("s", 1500, kKeep).saved.size();
    const std::vector<StateManifest> live = LiveSnapshots(Thread("s"));
    EXPECT_LE(live.size(), statestore::MaxKeptSnapshots(kKeep, kEvery, live.front().position));
    EXPECT_GE(live.size(), std::min<size_t>(num_taken, kKeep));
  }
  EXPECT_GT(num_taken, 200u);  // some may be skipped
  const std::vector<StateManifest> thread = Thread("s");
  EXPECT_GT(thread.size(), num_taken);
  const std::vector<int32_t> tokens = TokensOf(thread);
  ASSERT_EQ(tokens.size(), thread.front().position + 1);

  for (const StateManifest& state : LiveSnapshots(thread)) {
    const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(state.position) + 1;
    const std::vector<int32_t> expected(begin, std::min(begin + 8, tokens.end()));
    EXPECT_EQ(After(state, static_cast<int>(expected.size())), expected) << state.position;

    v1::RewindSessionRequest request;
    request.set_name("s");
    request.set_position(state.position);
    v1::Session session;
    ASSERT_TRUE(Rewind(request, &session).ok());
    EXPECT_EQ(session.head().id(), state.id);
    // The history is the thread up to there.
    EXPECT_EQ(TokensOf(Thread("s")), std::vector<int32_t>(tokens.begin(), begin));
  }
}

TEST_F(LineageTest, AForkThinsNothingOfWhatItShares) {
  GoOn("s", 600, 8);
  const std::vector<StateManifest> shared = LiveSnapshots(Thread("s"));
  ASSERT_GT(shared.size(), 8u);
  v1::GenerateRequest request = Request(400);
  request.set_state_id(shared[3].id);
  request.set_session("fork");
  request.mutable_save()->set_every_tokens(kEvery);
  request.mutable_save()->set_keep_snapshots(1);
  ASSERT_TRUE(Generate(request).status.ok());
  GoOn("fork", 400, 1);
  for (const StateManifest& state : shared) {
    EXPECT_FALSE(After(state, 1).empty());
  }
  // Its own it does thin.
  std::vector<StateManifest> own = LiveSnapshots(Thread("fork"));
  std::erase_if(own, [](const StateManifest& state) { return state.session != "fork"; });
  EXPECT_LE(own.size(), statestore::MaxKeptSnapshots(1, kEvery, own.front().position));
}

TEST_F(LineageTest, WhatSomebodyWantsIsNotThinned) {
  GoOn("s", 400, 64);
  std::vector<StateManifest> live = LiveSnapshots(Thread("s"));
  ASSERT_GE(live.size(), 6u);
  std::set<std::string> wanted;
  v1::State updated;
  for (const char* field : {"labels", "pinned"}) {
    v1::UpdateStateRequest update;
    update.mutable_state()->set_id(live.back().id);
    update.mutable_state()->set_pinned(true);
    (*update.mutable_state()->mutable_labels())["name"] = "here";
    update.mutable_update_mask()->add_paths(field);
    grpc::ClientContext context;
    ASSERT_TRUE(states_->UpdateState(&context, update, &updated).ok());
    EXPECT_FALSE(updated.snapshot());
    wanted.insert(live.back().id);
    live.pop_back();
  }
  v1::CreateSessionRequest create;  // a head
  create.set_name("other");
  create.set_state_id(live.back().id);
  wanted.insert(live.back().id);
  live.pop_back();
  v1::Session session;
  grpc::ClientContext context;
  ASSERT_TRUE(sessions_stub_->CreateSession(&context, create, &session).ok());
  for (int call = 0; call < 4; ++call) GoOn("s", 600, 1);
  for (const std::string& id : wanted) EXPECT_TRUE(store_.Load(DefaultTenant(), id).ok());
  const std::vector<StateManifest> left = LiveSnapshots(Thread("s"));
  EXPECT_LE(left.size(), statestore::MaxKeptSnapshots(1, kEvery, left.front().position) + 1);
}

TEST_F(LineageTest, AnEndThatIsASnapshotIsKept) {
  const Answer answer = GoOn("s", 14, 1);  // 2 tokens consumed, then 14
  ASSERT_EQ(answer.finished.state().position(), kEvery);
  ASSERT_EQ(answer.saved.size(), 1u);
  EXPECT_EQ(answer.saved[0].id(), answer.finished.state().id());
  EXPECT_TRUE(answer.saved[0].snapshot());
  EXPECT_FALSE(answer.finished.state().snapshot());
  EXPECT_FALSE(store_.GetManifest(DefaultTenant(), answer.finished.state().id())->is_snapshot);
  for (int call = 0; call < 5; ++call) GoOn("s", 100, 1);
  EXPECT_TRUE(store_.Load(DefaultTenant(), answer.finished.state().id()).ok());
}

class DefaultSnapshotsTest : public LineageTest {
 protected:
  DefaultSnapshotsTest() : LineageTest(Options()) {}
  static ServerOptions Options() {
    ServerOptions options;
    options.snapshot_every = kEvery;
    options.snapshot_keep = 2;
    return options;
  }
};

TEST_F(DefaultSnapshotsTest, StreamsThatSaveTheirEndTakeTheServersDefault) {
  v1::GenerateRequest request = Request(100);
  EXPECT_TRUE(Generate(request).saved.empty());  // saves nothing
  request.mutable_save()->set_at_prompt_end(true);
  EXPECT_EQ(Generate(request).saved.size(), 1u);  // that one
  request.mutable_save()->Clear();
  request.mutable_save()->set_at_end(true);
  const Answer answer = Generate(request);
  ASSERT_FALSE(answer.saved.empty());
  EXPECT_EQ(answer.saved[0].position() % kEvery, 0u);
  request.mutable_save()->set_every_tokens(0);
  EXPECT_TRUE(Generate(request).saved.empty());  // not this one
  request.clear_save();
  request.set_session("s");
  EXPECT_FALSE(Generate(request).saved.empty());
  for (int call = 0; call < 5; ++call) ASSERT_TRUE(Generate(request).status.ok());
  const std::vector<StateManifest> live = LiveSnapshots(Thread("s"));
  EXPECT_LE(live.size(), statestore::MaxKeptSnapshots(2, kEvery, live.front().position));
}

}  // namespace
}  // namespace vivarium::server
