// Generate: sources, saves, sessions, sampling in force.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::Ge;
using testing::HasSubstr;
using testing::Le;
using testing::SizeIs;

class GenerateTest : public ServiceTest {
 protected:
  std::string HeadOf(const std::string& session) {
    const auto found = store_.GetSession(DefaultTenant(), session);
    return found.ok() ? found->head : "";
  }
};

std::vector<int32_t> Concatenate(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_F(GenerateTest, StreamsStartedDeltasFinished) {
  const Answer answer = Generate(Request(5));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_TRUE(answer.messages.front().has_started());
  EXPECT_TRUE(answer.messages.back().has_finished());
  EXPECT_THAT(answer.token_ids, SizeIs(5));
  EXPECT_EQ(answer.started.restored_tokens(), 0u);
  EXPECT_EQ(answer.started.prefill_tokens(), 3u);
  EXPECT_THAT(answer.started.reuse_explanation(), HasSubstr("nothing reused"));
  EXPECT_EQ(answer.finished.reason(), v1::LENGTH);
  EXPECT_EQ(answer.finished.usage().output_tokens(), 5u);
  EXPECT_FALSE(answer.finished.has_state());
  EXPECT_EQ(store_.Stats()->num_states, 0u);
}

TEST_F(GenerateTest, ResumeByStateGoesOnAsIfWithoutPause) {
  v1::GenerateRequest whole = Request(20);
  whole.mutable_sampling()->set_seed(7);
  const Answer expected = Generate(whole);
  v1::GenerateRequest first = whole;
  first.set_max_tokens(8);
  first.mutable_save()->set_at_end(true);
  const Answer before = Generate(first);
  ASSERT_TRUE(before.finished.has_state());
  v1::GenerateRequest second;
  second.set_state_id(before.finished.state().id());
  second.set_max_tokens(12);
  const Answer after = Generate(second);
  ASSERT_TRUE(after.status.ok()) << after.status.error_message();
  EXPECT_EQ(Concatenate(before.token_ids, after.token_ids), expected.token_ids);
  EXPECT_EQ(after.started.restored_tokens(), 3u + 8 - 1);
  EXPECT_EQ(after.started.prefill_tokens(), 1u);
  EXPECT_EQ(after.started.source_state_id(), before.finished.state().id());
  EXPECT_EQ(after.started.sampling().seed(), 7u);
  EXPECT_FALSE(after.started.numerics_changed());
}

TEST_F(GenerateTest, ResumeBySessionMovesItsHead) {
  v1::GenerateRequest request = Request(4);
  request.set_session("chat");
  const Answer first = Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_TRUE(first.started.session_created());
  EXPECT_EQ(HeadOf("chat"), first.finished.state().id());
  EXPECT_EQ(first.finished.state().session(), "chat");
  SetTokens(&request, {9});
  request.set_expected_etag(first.finished.session_etag());
  const Answer second = Generate(request);
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_FALSE(second.started.session_created());
  EXPECT_EQ(second.started.restored_tokens(), 6u);
  EXPECT_EQ(second.started.prefill_tokens(), 2u);
  EXPECT_EQ(HeadOf("chat"), second.finished.state().id());
  EXPECT_EQ(second.finished.state().parent_id(), first.finished.state().id());
  EXPECT_NE(second.finished.session_etag(), first.finished.session_etag());
  const Answer stale = Generate(request);  // the first call's etag again
  EXPECT_EQ(stale.status.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(stale.error.reason(), "STALE_ETAG");
  EXPECT_EQ(HeadOf("chat"), second.finished.state().id());
}

TEST_F(GenerateTest, ForksDoNotDisturbEachOther) {
  v1::GenerateRequest request = Request(4);
  request.mutable_save()->set_at_end(true);
  const Answer base = Generate(request);
  v1::GenerateRequest fork;
  fork.set_state_id(base.finished.state().id());
  SetTokens(&fork, {5});
  fork.set_max_tokens(6);
  fork.mutable_sampling()->set_seed(1);
  fork.mutable_save()->set_at_end(true);
  const Answer a = Generate(fork);
  SetTokens(&fork, {6});
  const Answer b = Generate(fork);
  SetTokens(&fork, {5});
  const Answer a_again = Generate(fork);
  EXPECT_EQ(a.token_ids, a_again.token_ids);
  EXPECT_NE(a.token_ids, b.token_ids);
  EXPECT_EQ(a.finished.state().parent_id(), b.finished.state().parent_id());
}

TEST_F(GenerateTest, FreshStartMovesAnExistingSession) {
  v1::GenerateRequest request = Request(4);
  request.set_session("s");
  const Answer first = Generate(request);
  request.set_fresh(true);
  const Answer second = Generate(request);
  ASSERT_TRUE(second.status.ok());
  EXPECT_EQ(second.started.restored_tokens(), 0u);
  EXPECT_EQ(second.finished.state().parent_id(), "");
  EXPECT_EQ(HeadOf("s"), second.finished.state().id());
}

TEST_F(GenerateTest, EmptySavePolicyOnlyReadsTheSession) {
  v1::GenerateRequest request = Request(4);
  request.set_session("s");
  const Answer first = Generate(request);
  SetTokens(&request, {8});
  request.mutable_save();
  const Answer second = Generate(request);
  ASSERT_TRUE(second.status.ok());
  EXPECT_EQ(second.started.restored_tokens(), 6u);
  EXPECT_FALSE(second.finished.has_state());
  EXPECT_EQ(HeadOf("s"), first.finished.state().id());
}

TEST_F(GenerateTest, SavesFormAChainAndSnapshotsNeverMoveTheHead) {
  v1::GenerateRequest request = Request(60);
  request.set_session("s");
  request.mutable_save()->set_every_tokens(16);
  request.mutable_save()->set_at_prompt_end(true);
  absl::Mutex mutex;
  std::vector<std::string> heads;
  store_.SetHook([&](const statestore::Commit& commit) {
    absl::MutexLock lock(&mutex);
    if (commit.head_move) heads.push_back(commit.head_move->head);
    return absl::OkStatus();
  });
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_FALSE(answer.saved.empty());
  EXPECT_EQ(answer.saved[0].position(), 2u);
  EXPECT_EQ(answer.saved[0].pending_token(), 3);
  std::string parent;
  uint64_t position = 0;
  for (const v1::State& state : answer.saved) {
    EXPECT_EQ(state.parent_id(), parent);
    EXPECT_GE(state.position(), position);
    parent = state.id();
    position = state.position();
  }
  EXPECT_EQ(answer.finished.state().parent_id(), parent);
  absl::MutexLock lock(&mutex);
  EXPECT_THAT(heads, ElementsAre(answer.finished.state().id()));
  // The transcripts of the chain are the thread.
  const auto chain = store_.Ancestry(DefaultTenant(), answer.finished.state().id(), 100);
  std::vector<int32_t> tokens;
  for (auto it = chain->rbegin(); it != chain->rend(); ++it) {
    for (const auto& token : it->transcript) tokens.push_back(token.id);
    EXPECT_EQ(tokens.size(), it->position + 1);
  }
  EXPECT_EQ(tokens, Concatenate({1, 2, 3}, answer.token_ids));
}

TEST_F(GenerateTest, WhileStoringLagsSnapshotsAreSkippedAndNoTokenIsLost) {
  absl::Notification go;
  store_.SetHook([&](const statestore::Commit&) {
    go.WaitForNotification();
    return absl::OkStatus();
  });
  v1::GenerateRequest request = Request(200);
  request.mutable_save()->set_every_tokens(16);
  request.mutable_save()->set_at_end(true);
  std::thread opener([&] {
    engine_->AwaitOutputTokens(200);
    go.Notify();
  });
  const Answer answer = Generate(request);
  opener.join();
  ASSERT_TRUE(answer.status.ok());
  // Of 12, the one that the store had in hand.
  ASSERT_THAT(answer.saved, SizeIs(1));
  EXPECT_EQ(answer.saved[0].position(), 16u);
  EXPECT_EQ(answer.finished.usage().skipped_snapshots(), 11u);
  EXPECT_THAT(metrics_.Text(), HasSubstr("vivarium_skipped_snapshots_total 11\n"));
  const auto chain = store_.Ancestry(DefaultTenant(), answer.finished.state().id(), 100);
  size_t num_tokens = 0;
  for (const auto& manifest : *chain) num_tokens += manifest.transcript.size();
  EXPECT_EQ(num_tokens, 203u);
}

TEST_F(GenerateTest, StatesAtThePromptsEndAndAtTheEndAreNeverSkipped) {
  absl::Notification go;
  store_.SetHook([&](const statestore::Commit&) {
    go.WaitForNotification();
    return absl::OkStatus();
  });
  v1::GenerateRequest request = Request(40);  // [1, 2, 3]: the prompt's end is at 2
  request.mutable_save()->set_every_tokens(16);
  request.mutable_save()->set_at_prompt_end(true);
  request.mutable_save()->set_at_end(true);
  std::thread opener([&] {
    engine_->AwaitOutputTokens(40);
    go.Notify();
  });
  const Answer answer = Generate(request);
  opener.join();
  ASSERT_TRUE(answer.status.ok());
  ASSERT_THAT(answer.saved, SizeIs(1));
  EXPECT_EQ(answer.saved[0].position(), 2u);
  EXPECT_EQ(answer.finished.state().position(), 42u);
  EXPECT_EQ(answer.finished.usage().skipped_snapshots(), 2u);  // at 16 and at 32
}

TEST_F(GenerateTest, AStoreThatKeepsUpSkipsNothing) {
  v1::GenerateRequest request = Request(40);
  request.mutable_save()->set_every_tokens(16);
  engine_->AllowTokens(0);
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, request);
  v1::GenerateResponse message;
  std::vector<uint64_t> positions;
  for (const int num_tokens : {14, 16}) {  // to 16, to 32
    engine_->AllowTokens(num_tokens);
    while (reader->Read(&message) && !message.has_saved()) {
    }
    positions.push_back(message.saved().state().position());
  }
  engine_->AllowAllTokens();
  v1::Finished finished;
  while (reader->Read(&message)) {
    if (message.has_finished()) finished = message.finished();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(positions, ElementsAre(16, 32));
  EXPECT_EQ(finished.usage().output_tokens(), 40u);
  EXPECT_EQ(finished.usage().skipped_snapshots(), 0u);
}

TEST_F(GenerateTest, PromptEndAloneMovesTheHeadThere) {
  v1::GenerateRequest request = Request(5);
  request.set_session("s");
  request.mutable_save()->set_at_prompt_end(true);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok());
  ASSERT_THAT(answer.saved, SizeIs(1));
  EXPECT_FALSE(answer.finished.has_state());
  EXPECT_EQ(HeadOf("s"), answer.saved[0].id());
}

TEST_F(GenerateTest, PreReadingADocumentSavesOnce) {
  v1::GenerateRequest request = Request(0);
  request.mutable_save()->set_at_prompt_end(true);
  request.mutable_save()->set_at_end(true);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok());
  ASSERT_THAT(answer.saved, SizeIs(1));
  EXPECT_EQ(answer.finished.state().id(), answer.saved[0].id());
  EXPECT_EQ(store_.Stats()->num_states, 1u);
}

TEST_F(GenerateTest, SamplingIsInheritedOnlyWithNothingNew) {
  v1::GenerateRequest request = Request(4);
  request.mutable_sampling()->set_seed(7);
  request.mutable_sampling()->set_temperature(0.25f);
  request.mutable_sampling()->set_top_k(5);
  (*request.mutable_sampling()->mutable_logit_bias())[3] = -1.5f;
  request.mutable_save()->set_at_end(true);
  const Answer base = Generate(request);
  v1::GenerateRequest resume;
  resume.set_state_id(base.finished.state().id());
  resume.set_max_tokens(1);
  resume.mutable_sampling()->set_top_k(9);
  const v1::Sampling pause = Generate(resume).started.sampling();
  EXPECT_EQ(pause.seed(), 7u);
  EXPECT_EQ(pause.temperature(), 0.25f);
  EXPECT_EQ(pause.top_k(), 9);
  EXPECT_EQ(pause.logit_bias().at(3), -1.5f);
  SetTokens(&resume, {4});
  const v1::Sampling fresh = Generate(resume).started.sampling();
  EXPECT_NE(fresh.seed(), 7u);
  EXPECT_EQ(fresh.temperature(), 0.75f);  // the model's default
  EXPECT_EQ(fresh.top_k(), 9);
  EXPECT_TRUE(fresh.logit_bias().empty());
  EXPECT_NE(Generate(resume).started.sampling().seed(), fresh.seed());
}

TEST_F(GenerateTest, LogprobsComeWhenAskedFor) {
  v1::GenerateRequest request = Request(3);
  request.mutable_sampling()->set_logprobs(2);
  const Answer answer = Generate(request);
  int num_logprobs = 0;
  for (const auto& message : answer.messages) {
    for (const v1::Logprobs& logprobs : message.delta().logprobs()) {
      EXPECT_EQ(logprobs.top_size(), 2);
      ++num_logprobs;
    }
  }
  EXPECT_EQ(num_logprobs, 3);
}

TEST_F(GenerateTest, AnotherModelsStateIsRefusedNamingBothSides) {
  v1::GenerateRequest request = Request(2);
  request.mutable_save()->set_at_end(true);
  const Answer base = Generate(request);
  request.set_state_id(base.finished.state().id());
  parts_.model.identity.fingerprint = "another";
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(answer.error.reason(), "MODEL_MISMATCH");
  EXPECT_EQ(answer.error.metadata().at("state"), "fingerprint");
  EXPECT_EQ(answer.error.metadata().at("server"), "another");
  parts_.model.identity.fingerprint = "fingerprint";
  parts_.model.identity.tokenizer_hash = "abc";
  EXPECT_EQ(Generate(request).error.reason(), "TOKENIZER_MISMATCH");
  parts_.model.identity.tokenizer_hash = "";
  parts_.model.identity.numerics_id = "fake-v2";
  EXPECT_TRUE(Generate(request).started.numerics_changed());
}

TEST_F(GenerateTest, AFailedSaveEndsTheStreamAndTheHeadStands) {
  v1::GenerateRequest request = Request(4);
  request.set_session("s");
  const Answer first = Generate(request);
  store_.SetHook([](const statestore::Commit&) { return absl::ResourceExhaustedError("disk"); });
  const Answer at_end = Generate(request);
  EXPECT_EQ(at_end.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_FALSE(at_end.is_finished);
  request.mutable_save()->set_every_tokens(16);
  request.set_max_tokens(100000);  // more than it will get to
  const Answer on_the_way = Generate(request);
  EXPECT_EQ(on_the_way.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_LT(on_the_way.token_ids.size(), 100000u);
  store_.SetHook(nullptr);
  EXPECT_EQ(HeadOf("s"), first.finished.state().id());
  EXPECT_EQ(store_.Stats()->num_states, 1u);
}

TEST_F(GenerateTest, AnEngineErrorLeavesTheHead) {
  v1::GenerateRequest request = Request(4);
  request.set_session("s");
  const Answer first = Generate(request);
  engine_->AllowTokens(1);
  std::thread breaker([&] {
    engine_->AwaitOutputTokens(5);
    engine_->FailStreams(absl::InternalError("device lost"));
  });
  const Answer second = Generate(request);
  breaker.join();
  EXPECT_EQ(second.status.error_code(), StatusCode::INTERNAL);
  EXPECT_EQ(second.error.reason(), "INTERNAL");
  EXPECT_EQ(HeadOf("s"), first.finished.state().id());
}

TEST_F(GenerateTest, AFaultOfTheDeviceSaysWhereToGoOn) {
  v1::GenerateRequest request = Request(40);
  request.mutable_save()->set_every_tokens(16);
  engine_->AllowTokens(20);
  std::thread breaker([&] {
    engine_->AwaitOutputTokens(20);
    engine_->FailStreams(engine::DeviceFaultError("memory"));
  });
  const Answer answer = Generate(request);
  breaker.join();
  EXPECT_EQ(answer.status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("the device failed (memory)"));
  EXPECT_EQ(answer.error.reason(), "DEVICE_FAULT");
  ASSERT_THAT(answer.saved, SizeIs(1));
  EXPECT_EQ(answer.error.metadata().at("last_state_id"), answer.saved[0].id());
  // A stream that has saved nothing: the state that it came from.
  v1::GenerateRequest resume = Request(40);
  resume.set_state_id(answer.saved[0].id());
  std::thread again([&] {
    engine_->AwaitLiveStreams(1);
    engine_->FailStreams(engine::DeviceFaultError("memory"));
  });
  const Answer second = Generate(resume);
  again.join();
  EXPECT_EQ(second.error.metadata().at("last_state_id"), answer.saved[0].id());
}

TEST_F(GenerateTest, AfterAFaultNewStreamsAreRefusedForThat) {
  // The engine knows first.
  engine_->FailNextSubmit(engine::DeviceFaultError("memory"));
  const Answer first = Generate(Request());
  EXPECT_EQ(first.status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(first.error.reason(), "DEVICE_FAULT");
  // Then the server, which drains besides.
  parts_.has_device_fault = true;
  parts_.is_draining = true;
  const Answer second = Generate(Request());
  EXPECT_EQ(second.status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(second.error.reason(), "DEVICE_FAULT");
}

TEST_F(GenerateTest, ExpiredStatesAreNotFound) {
  v1::GenerateRequest request = Request(4);
  request.mutable_save()->set_at_end(true);
  request.mutable_ttl()->set_seconds(60);
  const Answer base = Generate(request);
  EXPECT_EQ(base.finished.state().expire_time().seconds(),
            base.finished.state().create_time().seconds() + 60);
  v1::GenerateRequest resume;
  resume.set_state_id(base.finished.state().id());
  EXPECT_TRUE(Generate(resume).status.ok());
  AdvanceClock(absl::Seconds(61));
  const Answer gone = Generate(resume);
  EXPECT_EQ(gone.status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(gone.error.reason(), "STATE_NOT_FOUND");
}

TEST_F(GenerateTest, AFullQueueSaysWhenToComeBack) {
  engine_->FailNextSubmit(absl::ResourceExhaustedError("all 1024 places are taken"));
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(answer.error.reason(), "QUEUE_FULL");
  EXPECT_EQ(answer.pushback_ms, 1000);
}

TEST_F(GenerateTest, DrainingRefusesNewStreams) {
  parts_.is_draining = true;
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(answer.error.reason(), "DRAINING");
}

}  // namespace
}  // namespace vivarium::server
