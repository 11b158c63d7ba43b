// More work than can be done: what is refused, what waits, and that memory stays bounded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/admission.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using absl::Seconds;
using grpc::StatusCode;
using testing::HasSubstr;

absl::Time At(double seconds) { return absl::UnixEpoch() + Seconds(seconds); }

// Streams that wait, one beginning a second, from 0 on.
void BeginOneASecond(Admission& admission, int num_begun, int num_left) {
  for (int i = 0; i < num_begun + num_left; ++i) {
    EXPECT_TRUE(admission.Enter(At(0), absl::InfiniteFuture()).ok());
  }
  for (int i = 1; i <= num_begun; ++i) admission.Leave(At(i), /*has_begun=*/true);
}

TEST(AdmissionTest, PredictsNothingBeforeItHasSeenSome) {
  Admission admission({100, Seconds(1), 16});
  BeginOneASecond(admission, kMinIntervals - 1, 50);
  EXPECT_EQ(admission.ExpectedWait(At(kMinIntervals - 1)), absl::ZeroDuration());
  EXPECT_TRUE(admission.Check(At(kMinIntervals - 1), absl::InfiniteFuture()).ok());
  admission.Leave(At(kMinIntervals), true);
  EXPECT_GT(admission.ExpectedWait(At(kMinIntervals)), Seconds(40));
}

TEST(AdmissionTest, TheWaitIsTheQueueTimesTheMeanInterval) {
  Admission admission({100, Seconds(9), 16});
  BeginOneASecond(admission, 10, 10);
  // 10 intervals of 1 s, and the one that has just begun.
  EXPECT_NEAR(absl::ToDoubleSeconds(admission.ExpectedWait(At(10))), 10.0 * 10 / 11, 1e-6);
  const absl::Status refused = admission.Check(At(10), absl::InfiniteFuture());
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "WAIT_TOO_LONG");
  EXPECT_THAT(std::string(refused.message()), HasSubstr("expected within 9.0 s"));
  admission.Leave(At(10), /*has_begun=*/false);  // its client went away
  EXPECT_TRUE(admission.Check(At(10), absl::InfiniteFuture()).ok());
  // Nothing begins any more: the wait grows.
  EXPECT_FALSE(admission.Check(At(20), absl::InfiniteFuture()).ok());
}

TEST(AdmissionTest, ADeadlineInTheQueueIsRefusedAtOnce) {
  Admission admission({100, absl::InfiniteDuration(), 16});
  BeginOneASecond(admission, 10, 11);
  EXPECT_TRUE(admission.Check(At(10), At(21)).ok());
  const absl::Status refused = admission.Check(At(10), At(19));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "DEADLINE_TOO_SOON");
}

TEST(AdmissionTest, WhenNobodyWaitsTimeDoesNotCount) {
  Admission admission({100, Seconds(5), 16});
  BeginOneASecond(admission, 10, 0);
  EXPECT_EQ(admission.ExpectedWait(At(1e6)), absl::ZeroDuration());
  EXPECT_TRUE(admission.Enter(At(1e6), absl::InfiniteFuture()).ok());  // long after
  EXPECT_LT(admission.ExpectedWait(At(1e6)), Seconds(1));
  admission.Leave(At(1e6 + 1), true);
  EXPECT_EQ(admission.num_waiting(), 0);
}

TEST(AdmissionTest, OldIntervalsAreForgotten) {
  Admission admission({100, Seconds(5), kMinIntervals});
  BeginOneASecond(admission, 10, 40);
  for (int i = 1; i <= 20; ++i) admission.Leave(At(10 + 0.01 * i), true);
  EXPECT_NEAR(absl::ToDoubleSeconds(admission.ExpectedWait(At(10.2))), 20 * 0.08 / 9, 1e-3);
}

TEST(AdmissionTest, AsManyWaitAsMay) {
  Admission admission({2, Seconds(5), 16});
  EXPECT_TRUE(admission.Enter(At(0), absl::InfiniteFuture()).ok());
  EXPECT_TRUE(admission.Check(At(0), absl::InfiniteFuture()).ok());
  EXPECT_TRUE(admission.Enter(At(0), absl::InfiniteFuture()).ok());
  EXPECT_EQ(ReasonOf(admission.Check(At(0), absl::InfiniteFuture())), "QUEUE_FULL");
  EXPECT_EQ(ReasonOf(admission.Enter(At(0), absl::InfiniteFuture())), "QUEUE_FULL");
  EXPECT_EQ(admission.num_waiting(), 2);
}

class OverloadTest : public ServiceTest {
 protected:
  static ServerOptions Options() {
    ServerOptions options;
    options.max_queue_seconds = 1;
    return options;
  }
  OverloadTest() : ServiceTest(Options()) {}
};

TEST_F(OverloadTest, WhatWouldWaitTooLongIsRefusedAndMayComeBack) {
  // One has begun every second, and five wait.
  const absl::Time begin = absl::Now() - Seconds(10);
  for (int i = 0; i < 15; ++i) {
    ASSERT_TRUE(admission_.Enter(begin, absl::InfiniteFuture()).ok());
  }
  for (int i = 9; i >= 0; --i) admission_.Leave(absl::Now() - Seconds(i), /*has_begun=*/true);
  const Answer refused = Generate(Request(1));
  EXPECT_EQ(refused.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.error.reason(), "WAIT_TOO_LONG");
  EXPECT_GE(refused.pushback_ms, 3000);
  v1::ScoreResponse scores;
  v1::ScoreRequest score;
  score.mutable_token_ids()->add_ids(1);
  score.mutable_token_ids()->add_ids(2);
  grpc::ClientContext context;
  EXPECT_EQ(ErrorInfoOf(generation_->Score(&context, score, &scores)).reason(), "WAIT_TOO_LONG");
  EXPECT_THAT(metrics_.Text(), HasSubstr("vivarium_refused_calls_total{method=\"Generate\""));
  for (int i = 0; i < 5; ++i) admission_.Leave(absl::Now(), /*has_begun=*/false);
  EXPECT_TRUE(Generate(Request(1)).status.ok());
  EXPECT_EQ(admission_.num_waiting(), 0);
}

TEST_F(OverloadTest, EveryWayToEndStopsWaiting) {
  engine_->FailNextSubmit(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(Generate(Request(1)).error.reason(), "QUEUE_FULL");
  v1::GenerateRequest unknown = Request(1);
  unknown.set_state_id("st_00000000000000000000000000");
  EXPECT_EQ(Generate(unknown).status.error_code(), StatusCode::NOT_FOUND);
  engine_->HoldStarts(true);
  EXPECT_EQ(Generate(Request(1), absl::Milliseconds(30)).status.error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  engine_->AwaitLiveStreams(0);
  for (int i = 0; i < 1000 && admission_.num_waiting() > 0; ++i) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(admission_.num_waiting(), 0);
}

TEST_F(OverloadTest, HeadersAreBounded) {
  // A connection each: gRPC closes it on too long a header.
  const auto call_with_header = [&](size_t num_bytes) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto models = v1::Models::NewStub(
        grpc::CreateCustomChannel(port_->address(), grpc::InsecureChannelCredentials(), arguments));
    grpc::ClientContext context;
    context.AddMetadata("x-long", std::string(num_bytes, 'a'));
    v1::Model model;
    return models->GetModel(&context, {}, &model);
  };
  EXPECT_TRUE(call_with_header(kMaxHeaderBytes - 1024).ok());
  EXPECT_FALSE(call_with_header(kMaxHeaderBytes + 1).ok());
  EXPECT_TRUE(call_with_header(10).ok());
}

TEST_F(OverloadTest, CallsOfOneConnectionBeyondTheLimitWaitInTheClient) {
  engine_->AllowTokens(0);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> calls;
  v1::GenerateResponse message;
  for (int i = 0; i < kMaxCallsPerConnection; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    calls.push_back(generation_->Generate(contexts.back().get(), Request(1)));
    ASSERT_TRUE(calls.back()->Read(&message));
  }
  EXPECT_EQ(Generate(Request(1), absl::Milliseconds(100)).status.error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(parts_.num_open_streams, kMaxCallsPerConnection) << "it never reached the server";
  engine_->AllowAllTokens();
  for (auto& call : calls) {
    while (call->Read(&message)) continue;
    EXPECT_TRUE(call->Finish().ok());
  }
}

TEST_F(OverloadTest, AFloodOfResetsLeavesNothingBehind) {
  constexpr int kNumResets = 1000;
  engine_->AllowTokens(0);
  for (int i = 0; i < kNumResets; ++i) {
    grpc::ClientContext context;
    auto call = generation_->Generate(&context, Request(1000));
    context.TryCancel();
    v1::GenerateResponse message;
    while (call->Read(&message)) continue;
    call->Finish();
  }
  for (int i = 0; i < 2000 && parts_.num_open_streams > 0; ++i) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(parts_.num_open_streams, 0);
  EXPECT_EQ(admission_.num_waiting(), 0);
  engine_->AwaitLiveStreams(0);
  engine_->AllowAllTokens();
  EXPECT_TRUE(Generate(Request(1)).status.ok());
}

}  // namespace
}  // namespace vivarium::server
