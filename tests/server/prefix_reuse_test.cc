// Prefix reuse through the service: what is reused, what is stored for it, and what is said.
#include "server/prefix_reuse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;
using Ids = std::vector<int32_t>;

// `count` tokens, the same ones for the same `seed`.
Ids Prompt(int count, int seed = 0) {
  Ids ids;
  for (int i = 0; i < count; ++i) ids.push_back(1 + (seed * 101 + i * 7 + i * i) % 900);
  return ids;
}

Ids Concatenate(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

ServerOptions FewStates() {
  ServerOptions options;
  options.prefix_max_states = 3;
  return options;
}

class PrefixReuseTest : public ServiceTest {
 protected:
  explicit PrefixReuseTest(const ServerOptions& options = ServerOptions())
      : ServiceTest(options), prefixes_(std::make_unique<PrefixReuse>(&parts_)) {
    parts_.prefixes = prefixes_.get();
  }

  static v1::GenerateRequest RequestOf(const Ids& prompt) {
    v1::GenerateRequest request = Request(4);
    SetTokens(&request, prompt);
    request.mutable_sampling()->set_seed(7);
    return request;
  }
  // The whole call, and what it stored.
  Answer Run(const v1::GenerateRequest& request) {
    Answer answer = Generate(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    executor_->WaitUntilIdle();
    return answer;
  }
  Answer Run(const Ids& prompt) { return Run(RequestOf(prompt)); }
  // The same, computed.
  Answer Compute(v1::GenerateRequest request) {
    request.set_prefix_reuse(false);
    return Run(request);
  }
  std::vector<statestore::StateManifest> States() {
    return store_.ListStates(DefaultTenant(), {}, 1000, "")->items;
  }
  std::vector<statestore::StateManifest> AutomaticStates() {
    statestore::StateFilter filter;
    filter.labels[std::string(kPrefixLabel)] = std::string(kPrefixLabelValue);
    return store_.ListStates(DefaultTenant(), filter, 1000, "")->items;
  }
  std::string StateAt(const Ids& prompt) {
    const auto match = store_.FindPrefix(DefaultTenant(), {identity_, prompt, {}});
    return match.ok() ? match->id : "";
  }
  double Metric(const std::string& name) {
    const std::string text = metrics_.Text();
    const size_t at = text.find("\n" + name + " ");
    return at == std::string::npos ? 0 : std::stod(text.substr(at + name.size() + 2));
  }
  void ExpectSame(const Answer& found, const Answer& expected) {
    EXPECT_EQ(found.token_ids, expected.token_ids);
    EXPECT_EQ(found.text, expected.text);
    EXPECT_EQ(found.started.sampling().SerializeAsString(),
              expected.started.sampling().SerializeAsString());
    EXPECT_EQ(found.finished.reason(), expected.finished.reason());
  }

  std::unique_ptr<PrefixReuse> prefixes_;
};

TEST_F(PrefixReuseTest, TheThirdPromptWithABeginningReusesIt) {
  const Ids shared = Prompt(50);
  const Answer first = Run(Concatenate(shared, Prompt(10, 1)));
  EXPECT_THAT(first.started.reuse_explanation(),
              AllOf(StartsWith("nothing reused: neither a state nor a session was named; "),
                    HasSubstr("no stored state has consumed the prompt's first tokens")));
  EXPECT_THAT(States(), IsEmpty());
  const Answer second = Run(Concatenate(shared, Prompt(20, 2)));
  EXPECT_EQ(second.started.restored_tokens(), 0u);
  EXPECT_THAT(second.started.reuse_explanation(),
              HasSubstr("an earlier prompt has the same first 50 tokens"));
  EXPECT_THAT(second.saved, IsEmpty());
  ASSERT_THAT(States(), SizeIs(1));
  const statestore::StateManifest state = States()[0];
  EXPECT_EQ(state.position, 50u);
  EXPECT_EQ(state.labels.at(std::string(kPrefixLabel)), kPrefixLabelValue);
  EXPECT_THAT(state.parent_id, IsEmpty());
  EXPECT_NE(state.sampling.seed, 7u);
  EXPECT_LT(state.expires, absl::Now() + absl::Seconds(3601));

  const v1::GenerateRequest request = RequestOf(Concatenate(shared, Prompt(30, 3)));
  const Answer third = Run(request);
  EXPECT_EQ(third.started.restored_tokens(), 50u);
  EXPECT_EQ(third.started.prefill_tokens(), 30u);
  EXPECT_EQ(third.started.source_state_id(), state.id);
  EXPECT_THAT(third.started.reuse_explanation(),
              AllOf(StartsWith("reused the prompt's first 50 tokens"), HasSubstr(state.id)));
  EXPECT_FALSE(third.started.numerics_changed());
  EXPECT_EQ(third.finished.usage().restored_tokens(), 50u);
  EXPECT_EQ(third.finished.usage().prefill_tokens(), 30u);
  ExpectSame(third, Compute(request));
  EXPECT_THAT(States(), SizeIs(1));
  EXPECT_EQ(Metric("vivarium_prefix_lookups_total{result=\"hit\"}"), 1);
  EXPECT_EQ(Metric("vivarium_prefix_lookups_total{result=\"none\"}"), 2);
  EXPECT_EQ(Metric("vivarium_prefix_lookups_total{result=\"off\"}"), 1);
  EXPECT_EQ(Metric("vivarium_prefix_restored_tokens_total"), 50);
  EXPECT_EQ(Metric("vivarium_prefix_states_total{what=\"stored\"}"), 1);
  EXPECT_EQ(Metric("vivarium_prefix_lookup_seconds_count"), 3);
  EXPECT_EQ(Metric("vivarium_generate_sources_total{source=\"prefix\"}"), 1);
}

// The same prompt again: what is stored is the position just before its end.
TEST_F(PrefixReuseTest, TheSamePromptAgainLeavesItsLastToken) {
  const v1::GenerateRequest request = RequestOf(Prompt(40));
  const Answer first = Run(request);
  Run(request);
  const Answer third = Run(request);
  EXPECT_EQ(third.started.restored_tokens(), 39u);
  EXPECT_EQ(third.started.prefill_tokens(), 1u);
  ExpectSame(third, first);
  // A longer one goes on from there; a shorter one shares too little with what is stored.
  EXPECT_EQ(Run(Concatenate(Prompt(40), Prompt(5, 1))).started.restored_tokens(), 39u);
  EXPECT_EQ(Run(Prompt(36)).started.restored_tokens(), 0u);
}

TEST_F(PrefixReuseTest, WhatIsSavedIsAsIfItHadBeenComputed) {
  const Ids shared = Prompt(64);
  v1::GenerateRequest request = RequestOf(Concatenate(shared, Prompt(20, 3)));
  request.mutable_sampling()->set_repetition_penalty(1.5f);
  request.mutable_save()->set_at_end(true);
  request.mutable_save()->set_at_prompt_end(true);
  const Answer computed = Compute(request);
  for (const auto& state : States()) ASSERT_TRUE(store_.DeleteState("default", state.id).ok());
  Run(Concatenate(shared, Prompt(10, 1)));
  Run(Concatenate(shared, Prompt(10, 2)));
  const Answer reused = Run(request);
  EXPECT_EQ(reused.started.restored_tokens(), 64u);
  ExpectSame(reused, computed);
  ASSERT_THAT(reused.saved, SizeIs(1));
  EXPECT_THAT(reused.saved[0].parent_id(), IsEmpty());
  EXPECT_EQ(reused.finished.state().parent_id(), reused.saved[0].id());
  // The one that was reused may go: nothing hangs on it.
  ASSERT_TRUE(store_.DeleteState("default", reused.started.source_state_id()).ok());
  const auto end = store_.Load("default", reused.finished.state().id());
  const auto prompt_end = store_.Load("default", reused.saved[0].id());
  ASSERT_TRUE(end.ok() && prompt_end.ok());
  EXPECT_EQ(prompt_end->manifest.transcript.size(), 84u);
  EXPECT_EQ(end->manifest.transcript.size(), 4u);
  for (size_t i = 0; i < 84; ++i) {
    const engine::TranscriptToken& token = prompt_end->manifest.transcript[i];
    EXPECT_EQ(token.id, request.token_ids().ids(static_cast<int>(i)));
    EXPECT_FALSE(token.is_output);
    EXPECT_EQ(prompt_end->manifest.recent_tokens[i], token);
  }
  EXPECT_EQ(end->manifest.recent_tokens.size(), 88u);
  // Both are found in their turn, by whoever sends back what was said.
  Ids longer = Concatenate(Ids(request.token_ids().ids().begin(), request.token_ids().ids().end()),
                           reused.token_ids);
  EXPECT_EQ(StateAt(Concatenate(longer, {5})), reused.finished.state().id());
}

TEST_F(PrefixReuseTest, StatesThatClientsSavedAreReused) {
  v1::GenerateRequest read = RequestOf(Prompt(60));
  read.set_max_tokens(0);
  read.mutable_save()->set_at_end(true);
  const Answer saved = Run(read);
  const Answer answer = Run(Concatenate(Prompt(60), Prompt(9, 1)));
  EXPECT_EQ(answer.started.source_state_id(), saved.finished.state().id());
  EXPECT_EQ(answer.started.restored_tokens(), 59u);
  EXPECT_THAT(AutomaticStates(), IsEmpty());
  // A session's too: for a new session, and for a fresh start of an old one.
  v1::GenerateRequest chat = RequestOf(Prompt(60, 5));
  chat.set_session("chat");
  const Answer head = Run(chat);
  v1::GenerateRequest other = RequestOf(Concatenate(Prompt(60, 5), head.token_ids));
  other.mutable_token_ids()->add_ids(9);
  other.set_session("other");
  const Answer begun = Run(other);
  EXPECT_EQ(begun.started.source_state_id(), head.finished.state().id());
  EXPECT_EQ(begun.started.restored_tokens(), 63u);
  EXPECT_TRUE(begun.started.session_created());
  EXPECT_THAT(begun.finished.state().parent_id(), IsEmpty());
  other.set_fresh(true);
  EXPECT_EQ(Run(other).started.restored_tokens(), 63u);
  // Not where a source is named, or the session has a head: that is where it goes on.
  other.clear_fresh();
  const Answer resumed = Run(other);
  EXPECT_THAT(resumed.started.reuse_explanation(),
              StartsWith("restored the head of session other"));
}

TEST_F(PrefixReuseTest, OptingOutNeitherLooksNorRemembers) {
  v1::GenerateRequest request = RequestOf(Prompt(50));
  for (int i = 0; i < 3; ++i) {
    const Answer answer = Compute(request);
    EXPECT_THAT(answer.started.reuse_explanation(),
                HasSubstr("the request turned prefix reuse off"));
    EXPECT_EQ(answer.started.restored_tokens(), 0u);
  }
  EXPECT_THAT(States(), IsEmpty());
  Run(request);
  EXPECT_THAT(States(), IsEmpty());
  parts_.options.prefix_reuse = "off";
  EXPECT_THAT(Run(request).started.reuse_explanation(), HasSubstr("--prefix-reuse"));
  EXPECT_THAT(States(), IsEmpty());
  request.set_prefix_reuse(true);
  Run(request);
  EXPECT_THAT(States(), SizeIs(1));
}

TEST_F(PrefixReuseTest, ShortOnesAreNotWorthIt) {
  EXPECT_THAT(Run(Prompt(32)).started.reuse_explanation(),
              HasSubstr("the prompt has 32 tokens, and prefixes are reused from 32 on"));
  Run(Prompt(32));
  EXPECT_THAT(States(), IsEmpty());
  v1::GenerateRequest save = RequestOf(Prompt(32));
  save.set_max_tokens(0);
  save.mutable_save()->set_at_end(true);
  Run(save);
  const Answer answer = Run(Concatenate(Prompt(31), Prompt(30, 1)));
  EXPECT_EQ(answer.started.restored_tokens(), 0u);
  EXPECT_THAT(answer.started.reuse_explanation(), HasSubstr("has 31 tokens, fewer than 32"));
  // Exactly the minimum is enough, to reuse and to store.
  Run(Concatenate(Prompt(32, 9), Prompt(30, 1)));
  Run(Concatenate(Prompt(32, 9), Prompt(30, 2)));
  EXPECT_EQ(Run(Concatenate(Prompt(32, 9), Prompt(30, 3))).started.restored_tokens(), 32u);
  // A few tokens more than what is there are not stored.
  const size_t before = States().size();
  const Ids longer = Concatenate(Prompt(32, 9), Prompt(31, 4));
  Run(Concatenate(longer, {1, 2, 3}));
  Run(Concatenate(longer, {4, 5, 6}));
  EXPECT_THAT(States(), SizeIs(before));
  const Ids longest = Concatenate(Prompt(32, 9), Prompt(32, 5));
  Run(Concatenate(longest, {1, 2, 3}));
  Run(Concatenate(longest, {4, 5, 6}));
  EXPECT_THAT(States(), SizeIs(before + 1));
}

TEST_F(PrefixReuseTest, OtherNumericsAreNamedNotUsed) {
  v1::GenerateRequest save = RequestOf(Prompt(50));
  save.mutable_save()->set_at_prompt_end(true);
  const Answer saved = Run(save);
  parts_.model.identity.numerics_id = "fake-v2";
  const Answer answer = Run(Prompt(50));
  EXPECT_EQ(answer.started.restored_tokens(), 0u);
  EXPECT_THAT(answer.started.reuse_explanation(),
              AllOf(StartsWith("nothing reused"), HasSubstr(saved.saved[0].id()),
                    HasSubstr("first 49 tokens, but not bit for bit"),
                    HasSubstr("its numerics are fake-v1, here they are fake-v2")));
  EXPECT_EQ(Metric("vivarium_prefix_lookups_total{result=\"inexact\"}"), 1);
}

// What goes wrong with automatic states is nobody's error.
TEST_F(PrefixReuseTest, AFailedSaveIsCountedAndTheStreamDoesNotHear) {
  const Ids shared = Prompt(50);
  Run(Concatenate(shared, Prompt(10, 1)));
  store_.SetHook([](const statestore::Commit&) { return absl::ResourceExhaustedError("full"); });
  Run(Concatenate(shared, Prompt(10, 2)));
  EXPECT_EQ(Metric("vivarium_prefix_states_total{what=\"failed\"}"), 1);
  EXPECT_THAT(States(), IsEmpty());
  store_.SetHook(nullptr);
  Run(Concatenate(shared, Prompt(10, 3)));
  EXPECT_THAT(States(), SizeIs(1));
}

TEST_F(PrefixReuseTest, NothingIsRememberedWhileTheStoreDoesNotWrite) {
  store_.StopWriting(absl::ResourceExhaustedError("full"));
  for (int i = 1; i < 4; ++i) {
    const Answer answer = Run(Concatenate(Prompt(50), Prompt(10, i)));
    EXPECT_THAT(answer.started.reuse_explanation(), Not(HasSubstr("an earlier prompt")));
  }
  store_.StopWriting(absl::OkStatus());
  Run(Concatenate(Prompt(50), Prompt(10, 5)));
  EXPECT_THAT(States(), IsEmpty());
  Run(Concatenate(Prompt(50), Prompt(10, 6)));
  EXPECT_THAT(States(), SizeIs(1));
}

// A save that takes long holds up neither its stream nor others; another one is skipped meanwhile.
TEST_F(PrefixReuseTest, ASlowSaveHoldsUpNobody) {
  const Ids a = Prompt(50, 1), b = Prompt(50, 2);
  Run(Concatenate(a, {1}));
  Run(Concatenate(b, {1}));
  absl::Notification go_on;
  store_.SetHook([&](const statestore::Commit&) {
    go_on.WaitForNotification();
    return absl::OkStatus();
  });
  EXPECT_TRUE(Generate(RequestOf(Concatenate(a, {2}))).status.ok());
  EXPECT_TRUE(Generate(RequestOf(Concatenate(b, {2}))).status.ok());
  EXPECT_THAT(States(), IsEmpty());
  EXPECT_EQ(Metric("vivarium_prefix_states_total{what=\"skipped\"}"), 1);
  go_on.Notify();
  executor_->WaitUntilIdle();
  EXPECT_THAT(States(), SizeIs(1));
  EXPECT_EQ(Run(Concatenate(a, {3})).started.restored_tokens(), 50u);
}

TEST_F(PrefixReuseTest, ManyPromptsAtOnceStoreOneState) {
  const Ids shared = Prompt(50);
  const Answer expected = Compute(RequestOf(Concatenate(shared, Prompt(8, 77))));
  for (int round = 0; round < 4; ++round) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
      threads.emplace_back(
          [&] { ExpectSame(Generate(RequestOf(Concatenate(shared, Prompt(8, 77)))), expected); });
    }
    for (std::thread& thread : threads) thread.join();
    executor_->WaitUntilIdle();
  }
  // One at the prompt's end, whoever was first.
  ASSERT_THAT(States(), SizeIs(1));
  EXPECT_EQ(States()[0].position, 57u);
}

// A stored state that can't be read never fails a prompt that doesn't name it.
TEST_F(PrefixReuseTest, WhatCannotBeReadIsPassedOverAndNamed) {
  const auto save = [&](int num_tokens) {
    v1::GenerateRequest request = RequestOf(Prompt(num_tokens));
    request.set_max_tokens(0);
    request.mutable_save()->set_at_end(true);
    return Compute(request).finished.state().id();
  };
  parts_.options.prefix_max_states = 0;
  const std::string shorter = save(41), longer = save(61);
  const v1::GenerateRequest request = RequestOf(Prompt(80));
  const Answer expected = Compute(request);
  std::string bad = longer;
  absl::Status error = absl::DataLossError("chunk 0: checksum");
  store_.SetLoadHook(
      [&](const std::string& id) { return bad.empty() || id == bad ? error : absl::OkStatus(); });
  const Answer damaged = Run(request);
  ExpectSame(damaged, expected);
  EXPECT_EQ(damaged.started.restored_tokens(), 40u);
  EXPECT_EQ(damaged.started.source_state_id(), shorter);
  EXPECT_THAT(damaged.started.reuse_explanation(),
              HasSubstr("state " + longer + " is damaged and was skipped"));
  error = absl::NotFoundError("deleted in between");
  const Answer deleted = Run(request);
  ExpectSame(deleted, expected);
  EXPECT_EQ(deleted.started.restored_tokens(), 40u);
  error = absl::UnavailableError("the disk");
  const Answer unavailable = Run(request);
  ExpectSame(unavailable, expected);
  EXPECT_EQ(unavailable.started.restored_tokens(), 0u);
  EXPECT_THAT(unavailable.started.reuse_explanation(),
              AllOf(StartsWith("nothing reused"), HasSubstr(longer), HasSubstr("the disk")));
  // All of them damaged, and more than a look-up tries.
  error = absl::DataLossError("chunk 0: checksum");
  for (int i = 0; i < static_cast<int>(kMaxPrefixAttempts); ++i) save(62 + i);
  bad.clear();
  const Answer none = Run(request);
  ExpectSame(none, expected);
  EXPECT_EQ(none.started.restored_tokens(), 0u);
  EXPECT_THAT(none.started.reuse_explanation(), HasSubstr("gave up after 4 stored prefixes"));
  EXPECT_EQ(Metric("vivarium_prefix_lookups_total{result=\"damaged\"}"), 1);
  store_.SetLoadHook(nullptr);
  store_.FailPrefixes(absl::UnavailableError("the index"));
  const Answer failed = Run(request);
  ExpectSame(failed, expected);
  EXPECT_THAT(failed.started.reuse_explanation(),
              HasSubstr("looking for stored prefixes failed: the index"));
  EXPECT_EQ(Metric("vivarium_prefix_lookups_total{result=\"failed\"}"), 2);
  store_.FailPrefixes(absl::OkStatus());
}

class PrefixQuotaTest : public PrefixReuseTest {
 protected:
  static ServerOptions Options() {
    ServerOptions options;
    options.quota_states = 4;
    return options;
  }
  PrefixQuotaTest() : PrefixReuseTest(Options()) {}
};

TEST_F(PrefixQuotaTest, HalfOfAQuotaAtMostAndNoneThatAClientNeeds) {
  for (int seed = 1; seed <= 4; ++seed) {
    Run(Concatenate(Prompt(40, seed), {1}));
    Run(Concatenate(Prompt(40, seed), {2}));
  }
  EXPECT_THAT(AutomaticStates(), SizeIs(2));
  v1::GenerateRequest save = RequestOf({1, 2, 3});
  save.mutable_save()->set_at_end(true);
  for (int i = 0; i < 4; ++i) Run(save);
  EXPECT_THAT(AutomaticStates(), IsEmpty());
  EXPECT_THAT(States(), SizeIs(4));
  EXPECT_EQ(Generate(save).status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
}

class FewPrefixStatesTest : public PrefixReuseTest {
 protected:
  FewPrefixStatesTest() : PrefixReuseTest(FewStates()) {}

  // Makes the automatic state of `seed`.
  void Make(int seed) {
    Run(Concatenate(Prompt(40, seed), {1}));
    Run(Concatenate(Prompt(40, seed), {2}));
  }
  bool Hits(int seed) {
    return Run(Concatenate(Prompt(40, seed), {3})).started.restored_tokens() == 40;
  }
};

TEST_F(FewPrefixStatesTest, TheLeastRecentlyUsedGo) {
  for (int seed = 1; seed <= 3; ++seed) Make(seed);
  EXPECT_THAT(AutomaticStates(), SizeIs(3));
  EXPECT_TRUE(Hits(1));
  Make(4);
  EXPECT_THAT(AutomaticStates(), SizeIs(3));
  EXPECT_EQ(Metric("vivarium_prefix_states_total{what=\"dropped\"}"), 1);
  EXPECT_TRUE(Hits(1));
  EXPECT_TRUE(Hits(3));
  EXPECT_TRUE(Hits(4));
  // Again after a restart, by when their time ends: the one that is pinned is its user's now.
  prefixes_ = std::make_unique<PrefixReuse>(&parts_);
  parts_.prefixes = prefixes_.get();
  statestore::StateUpdate pin;
  pin.pinned = true;
  const std::string pinned = StateAt(Concatenate(Prompt(40, 3), {5}));
  ASSERT_TRUE(store_.UpdateState("default", pinned, pin).ok());
  Make(5);
  Make(6);
  Make(7);
  Make(8);
  EXPECT_THAT(AutomaticStates(), SizeIs(4));
  EXPECT_TRUE(Hits(3));
  EXPECT_TRUE(Hits(8));
}

TEST_F(FewPrefixStatesTest, UseKeepsThemAlive) {
  parts_.options.prefix_ttl_seconds = 1000;
  Make(1);
  const auto expires = [&] { return AutomaticStates()[0].expires; };
  const absl::Time first = expires();
  EXPECT_TRUE(Hits(1));
  EXPECT_EQ(expires(), first);  // more than half of its time is left
  parts_.options.prefix_ttl_seconds = 4000;
  EXPECT_TRUE(Hits(1));
  EXPECT_GT(expires(), first + absl::Seconds(2000));
}

TEST_F(FewPrefixStatesTest, NoneIsStoredWhereNoneMayBe) {
  parts_.options.prefix_max_states = 0;
  Make(1);
  EXPECT_THAT(States(), IsEmpty());
}

}  // namespace
}  // namespace vivarium::server
