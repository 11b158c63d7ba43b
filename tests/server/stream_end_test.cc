// Generate: leases, idempotence, cancels, vanished and slow clients, deadlines, drains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "google/protobuf/util/message_differencer.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;
using testing::SizeIs;

class StreamEndTest : public ServiceTest {
 protected:
  // A call whose messages the test reads one by one.
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
    Answer answer;

    bool ReadOne() {
      v1::GenerateResponse message;
      if (!reader->Read(&message)) return false;
      answer.Add(message);
      return true;
    }
    void ReadToEnd() {
      while (ReadOne()) {
      }
      answer.status = reader->Finish();
    }
  };

  std::unique_ptr<Call> Open(const v1::GenerateRequest& request) {
    auto call = std::make_unique<Call>();
    call->reader = generation_->Generate(&call->context, request);
    return call;
  }

  // Polls: what is waited for comes from other threads.
  static bool Await(const std::function<bool()>& is_true) {
    for (int i = 0; i < 5000; ++i) {
      if (is_true()) return true;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }

  std::string HeadOf(const std::string& session) {
    const auto found = store_.GetSession(DefaultTenant(), session);
    return found.ok() ? found->head : "";
  }

  v1::GenerateRequest SessionRequest(int max_tokens) {
    v1::GenerateRequest request = Request(max_tokens);
    request.set_session("s");
    return request;
  }
};

TEST_F(StreamEndTest, TheSecondWriterOfASessionIsAborted) {
  engine_->AllowTokens(0);
  const auto first = Open(SessionRequest(4));
  ASSERT_TRUE(first->ReadOne());
  const Answer second = Generate(SessionRequest(4));
  EXPECT_EQ(second.status.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(second.error.reason(), "SESSION_BUSY");
  EXPECT_THAT(second.status.error_message(), HasSubstr("session s "));
  // Those who only read it, or write another, go on.
  engine_->AllowAllTokens();
  first->ReadToEnd();
  EXPECT_TRUE(first->answer.status.ok());
  // Once the client has heard of the end, the session is free: at once, every time.
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Generate(SessionRequest(1)).status.ok()) << i;
}

TEST_F(StreamEndTest, OtherCallsCannotChangeASessionBeingWritten) {
  ASSERT_TRUE(Generate(SessionRequest(2)).status.ok());
  ASSERT_TRUE(Generate(SessionRequest(2)).status.ok());
  engine_->AllowTokens(0);
  const auto call = Open(SessionRequest(2));
  ASSERT_TRUE(call->ReadOne());
  {
    grpc::ClientContext context;
    v1::RewindSessionRequest rewind;
    rewind.set_name("s");
    rewind.set_steps(1);
    v1::Session session;
    EXPECT_EQ(sessions_stub_->RewindSession(&context, rewind, &session).error_code(),
              StatusCode::ABORTED);
  }
  {
    grpc::ClientContext context;
    v1::DeleteSessionRequest remove;
    remove.set_name("s");
    google::protobuf::Empty empty;
    EXPECT_EQ(sessions_stub_->DeleteSession(&context, remove, &empty).error_code(),
              StatusCode::ABORTED);
  }
  engine_->AllowAllTokens();
  call->ReadToEnd();
  EXPECT_TRUE(call->answer.status.ok());
}

TEST_F(StreamEndTest, ARetryAfterTheEndReplaysTheResult) {
  v1::GenerateRequest request = SessionRequest(6);
  request.set_request_id("r1");
  (*request.mutable_labels())["b"] = "2";
  (*request.mutable_labels())["a"] = "1";
  request.mutable_sampling()->set_logprobs(1);
  request.mutable_save()->set_at_prompt_end(true);
  request.mutable_save()->set_at_end(true);
  const Answer first = Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  const uint64_t consumed = engine_->Stats().consumed_tokens;
  const Answer retry = Generate(request);
  ASSERT_TRUE(retry.status.ok()) << retry.status.error_message();
  EXPECT_TRUE(retry.started.replayed());
  EXPECT_FALSE(first.started.replayed());
  EXPECT_EQ(retry.token_ids, first.token_ids);
  EXPECT_EQ(retry.text, first.text);
  EXPECT_EQ(retry.saved.size(), first.saved.size());
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(retry.finished, first.finished));
  EXPECT_EQ(engine_->Stats().consumed_tokens, consumed);  // nothing was computed again
  EXPECT_EQ(HeadOf("s"), first.finished.state().id());
}

TEST_F(StreamEndTest, AnotherRequestUnderTheSameIdIsRefused) {
  v1::GenerateRequest request = SessionRequest(3);
  request.set_request_id("r1");
  ASSERT_TRUE(Generate(request).status.ok());
  request.set_max_tokens(4);
  const Answer other = Generate(request);
  EXPECT_EQ(other.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(other.error.reason(), "REQUEST_ID_REUSED");
}

TEST_F(StreamEndTest, ARequestInFlightIsAborted) {
  v1::GenerateRequest request = SessionRequest(3);
  request.set_request_id("r1");
  engine_->AllowTokens(0);
  const auto first = Open(request);
  ASSERT_TRUE(first->ReadOne());
  const Answer second = Generate(request);
  EXPECT_EQ(second.status.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(second.error.reason(), "REQUEST_IN_FLIGHT");
  engine_->AllowAllTokens();
  first->ReadToEnd();
  EXPECT_TRUE(Generate(request).started.replayed());
}

TEST_F(StreamEndTest, RecordsExpireAfterAnHour) {
  v1::GenerateRequest request = SessionRequest(3);
  request.set_request_id("r1");
  ASSERT_TRUE(Generate(request).status.ok());
  AdvanceClock(absl::Minutes(61));
  const Answer later = Generate(request);
  ASSERT_TRUE(later.status.ok()) << later.status.error_message();
  EXPECT_FALSE(later.started.replayed());
}

TEST_F(StreamEndTest, ACancelledStreamIsSavedAtThePointReachedAndItsRetryTellsSo) {
  v1::GenerateRequest request = SessionRequest(100);
  request.set_request_id("r1");
  engine_->AllowTokens(10);
  const auto call = Open(request);
  engine_->AwaitOutputTokens(10);
  call->context.TryCancel();
  call->ReadToEnd();
  EXPECT_EQ(call->answer.status.error_code(), StatusCode::CANCELLED);
  engine_->AwaitLiveStreams(0);
  ASSERT_TRUE(Await([&] { return !HeadOf("s").empty(); }));
  const auto head = store_.GetManifest(DefaultTenant(), HeadOf("s"));
  EXPECT_EQ(head->position, 3u + 10 - 1);
  ASSERT_TRUE(Await([&] { return sessions_.num_leases() == 0; }));
  const Answer retry = Generate(request);
  ASSERT_TRUE(retry.status.ok()) << retry.status.error_message();
  EXPECT_TRUE(retry.started.replayed());
  EXPECT_THAT(retry.token_ids, SizeIs(10));
  EXPECT_EQ(retry.finished.reason(), v1::CANCELLED);
  EXPECT_EQ(retry.finished.state().id(), head->id);
}

TEST_F(StreamEndTest, AVanishedClientFreesItsSlot) {
  engine_->AllowTokens(5);
  {
    // A channel of its own, which goes away with the call in the middle.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel =
        grpc::CreateCustomChannel(port_->address(), grpc::InsecureChannelCredentials(), arguments);
    const auto stub = v1::Generation::NewStub(channel);
    grpc::ClientContext context;
    const auto reader = stub->Generate(&context, SessionRequest(100000));
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    engine_->AwaitOutputTokens(5);
  }
  engine_->AwaitLiveStreams(0);
  EXPECT_EQ(engine_->Stats().cancelled_streams, 1u);
  EXPECT_TRUE(Await([&] { return parts_.num_open_streams == 0; }));
  EXPECT_NE(HeadOf("s"), "");
}

TEST_F(StreamEndTest, CancelBeforeTheStreamBeginsIsHarmless) {
  for (int i = 0; i < 100; ++i) {
    const auto call = Open(SessionRequest(3));
    if (i % 2 == 0) absl::SleepFor(absl::Microseconds(20 * i));
    call->context.TryCancel();
    call->ReadToEnd();
  }
  engine_->AwaitLiveStreams(0);
  EXPECT_TRUE(Await([&] { return parts_.num_open_streams == 0; }));
  EXPECT_TRUE(Await([&] { return sessions_.num_leases() == 0; }));
  EXPECT_TRUE(Generate(SessionRequest(3)).status.ok());
}

TEST_F(StreamEndTest, AStalledReaderHoldsNoSlotAndGetsEverything) {
  constexpr int kNumTokens = 100000;  // far more than the connection's window
  const auto call = Open(SessionRequest(kNumTokens));
  engine_->AwaitOutputTokens(kNumTokens);
  engine_->AwaitLiveStreams(0);
  // Its session is free, and others are served, before it has read anything.
  ASSERT_TRUE(Await([&] { return sessions_.num_leases() == 0; }));
  EXPECT_TRUE(Generate(SessionRequest(1)).status.ok());
  call->ReadToEnd();
  EXPECT_TRUE(call->answer.status.ok()) << call->answer.status.error_message();
  EXPECT_THAT(call->answer.token_ids, SizeIs(kNumTokens));
  EXPECT_TRUE(call->answer.is_finished);
  EXPECT_LT(call->answer.messages.size(), size_t{kNumTokens} / 2);  // deltas merged
}

TEST_F(StreamEndTest, TooManyOpenStreamsAreRefused) {
  parts_.options.max_live_streams = 1;
  parts_.options.max_queued_streams = 1;
  engine_->AllowTokens(0);
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < parts_.max_open_streams(); ++i) {
    calls.push_back(Open(Request(1)));
    ASSERT_TRUE(calls.back()->ReadOne());
  }
  const Answer refused = Generate(Request(1));
  EXPECT_EQ(refused.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.error.reason(), "QUEUE_FULL");
  EXPECT_EQ(refused.pushback_ms, 1000);
  engine_->AllowAllTokens();
  for (const auto& call : calls) {
    call->ReadToEnd();
    EXPECT_TRUE(call->answer.status.ok());
  }
}

TEST_F(StreamEndTest, ThePassedDeadlineIsTheEnginesToo) {
  engine_->AllowTokens(3);
  const Answer answer = Generate(SessionRequest(100), absl::Milliseconds(200));
  EXPECT_EQ(answer.status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  engine_->AwaitLiveStreams(0);
  ASSERT_TRUE(Await([&] { return !HeadOf("s").empty(); }));
  EXPECT_EQ(store_.GetManifest(DefaultTenant(), HeadOf("s"))->position, 3u + 3 - 1);
}

TEST_F(StreamEndTest, ADrainChecksPointsThoseThatSaveAndTellsAll) {
  engine_->AllowTokens(0);
  v1::GenerateRequest snapshots = Request(100);
  snapshots.mutable_save()->set_every_tokens(16);
  const auto with_session = Open(SessionRequest(100));
  const auto with_policy = Open(snapshots);
  const auto without = Open(Request(100));
  for (const auto* call : {&with_session, &with_policy, &without}) ASSERT_TRUE((*call)->ReadOne());
  engine_->AllowTokens(9);
  engine_->AwaitOutputTokens(9);
  engine_->Drain(absl::Now());
  for (const auto* call : {&with_session, &with_policy, &without}) {
    (*call)->ReadToEnd();
    EXPECT_TRUE((*call)->answer.status.ok()) << (*call)->answer.status.error_message();
    EXPECT_EQ((*call)->answer.finished.reason(), v1::DRAINED);
  }
  EXPECT_EQ(HeadOf("s"), with_session->answer.finished.state().id());
  EXPECT_NE(HeadOf("s"), "");
  EXPECT_TRUE(with_policy->answer.finished.has_state());
  EXPECT_FALSE(without->answer.finished.has_state());
}

TEST_F(StreamEndTest, RandomStreamsEndExactlyOnce) {
  std::vector<std::thread> clients;
  std::atomic<int> num_ended{0};
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 25; ++i) {
        v1::GenerateRequest request = Request(1 + (client * 7 + i * 13) % 40);
        if (i % 2 == 0) request.set_session("s" + std::to_string(client));
        if (i % 3 == 0) request.mutable_save()->set_every_tokens(16);
        const auto call = Open(request);
        if (i % 5 == 4) {
          call->ReadOne();
          call->context.TryCancel();
        }
        call->ReadToEnd();
        if (call->answer.status.ok()) {
          EXPECT_TRUE(call->answer.messages.back().has_finished());
          EXPECT_EQ(call->answer.token_ids.size(), static_cast<size_t>(request.max_tokens()));
        } else {
          // A session whose last writer was cancelled may still be saving.
          EXPECT_THAT(call->answer.status.error_code(),
                      testing::AnyOf(StatusCode::CANCELLED, StatusCode::ABORTED));
        }
        ++num_ended;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(num_ended, 200);
  EXPECT_TRUE(Await([&] { return parts_.num_open_streams == 0; }));
}

}  // namespace
}  // namespace vivarium::server
