// Quotas as clients meet them: refused before the first token, reserved while streams run, given
// back however they end; snapshots beyond the quota are skipped.
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

ServerOptions WithQuota(int64_t num_states, int64_t num_bytes = 0) {
  ServerOptions options;
  options.quota_states = num_states;
  options.quota_bytes = num_bytes;
  return options;
}

class QuotaTest : public ServiceTest {
 protected:
  explicit QuotaTest(const ServerOptions& options) : ServiceTest(options) {}

  static v1::GenerateRequest Saving(int max_tokens = 4) {
    v1::GenerateRequest request = Request(max_tokens);
    request.mutable_save()->set_at_end(true);
    return request;
  }
  v1::QuotaUsage Usage() {
    grpc::ClientContext context;
    v1::Stats stats;
    EXPECT_TRUE(admin_->GetStats(&context, {}, &stats).ok());
    EXPECT_EQ(stats.quotas_size(), 1);
    return stats.quotas(0);
  }
  void ExpectUsage(uint64_t used, uint64_t reserved) {
    const v1::QuotaUsage usage = Usage();
    EXPECT_EQ(usage.used_states(), used);
    EXPECT_EQ(usage.reserved_states(), reserved);
    EXPECT_EQ(usage.used_bytes() > 0, used > 0);
    EXPECT_EQ(usage.reserved_bytes() > 0, reserved > 0);
  }
  static void ExpectRefused(const Answer& answer) {
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(answer.error.reason(), "QUOTA_EXCEEDED");
    EXPECT_TRUE(answer.messages.empty());  // not even started
  }
  void Delete(const std::string& id) {
    grpc::ClientContext context;
    v1::DeleteStateRequest request;
    request.set_id(id);
    google::protobuf::Empty empty;
    EXPECT_TRUE(states_->DeleteState(&context, request, &empty).ok());
  }
};

class TwoStates : public QuotaTest {
 protected:
  TwoStates() : QuotaTest(WithQuota(2)) {}
};

TEST_F(TwoStates, ARequestBeyondTheLimitFailsBeforeTheFirstToken) {
  const Answer first = Generate(Saving());
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  ASSERT_TRUE(Generate(Saving()).status.ok());
  ExpectUsage(2, 0);
  engine_->AllowTokens(0);  // a token that was asked for now would never come
  const Answer refused = Generate(Saving());
  ExpectRefused(refused);
  EXPECT_EQ(refused.error.metadata().at("tenant"), "default");
  EXPECT_EQ(refused.error.metadata().at("what"), "states");
  EXPECT_EQ(refused.error.metadata().at("used"), "2");
  EXPECT_EQ(refused.error.metadata().at("reserved"), "0");
  EXPECT_EQ(refused.error.metadata().at("asked"), "1");
  EXPECT_EQ(refused.error.metadata().at("limit"), "2");
  engine_->AllowAllTokens();
  EXPECT_TRUE(Generate(Request()).status.ok());  // saves nothing
  EXPECT_EQ(Usage().refusals(), 1u);
  Delete(first.finished.state().id());
  EXPECT_TRUE(Generate(Saving()).status.ok());
  ExpectUsage(2, 0);
}

TEST_F(TwoStates, RunningStreamsHoldWhatTheyWillSave) {
  engine_->AllowTokens(0);
  std::vector<Answer> answers(2);
  std::vector<std::thread> threads;
  for (Answer& answer : answers) threads.emplace_back([&] { answer = Generate(Saving()); });
  engine_->AwaitLiveStreams(2);
  ExpectUsage(0, 2);
  ExpectRefused(Generate(Saving()));
  engine_->AllowAllTokens();
  for (std::thread& thread : threads) thread.join();
  for (const Answer& answer : answers) {
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_TRUE(answer.finished.has_state());
  }
  ExpectUsage(2, 0);
}

TEST_F(TwoStates, PromptEndAndEndNeedTwo) {
  v1::GenerateRequest request = Saving();
  request.mutable_save()->set_at_prompt_end(true);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ExpectUsage(2, 0);
  Delete(answer.finished.state().id());
  ExpectRefused(Generate(request));  // one is left
  EXPECT_TRUE(Generate(Saving()).status.ok());
}

TEST_F(TwoStates, AStreamThatSavesNothingNew) {
  ASSERT_TRUE(Generate(Saving()).status.ok());
  v1::GenerateRequest request = Saving();
  request.set_max_tokens(0);
  request.mutable_save()->set_at_prompt_end(true);
  // The prompt's end is the end: one state, although two might have been.
  ExpectRefused(Generate(request));
  request.mutable_save()->set_at_end(false);
  ExpectRefused(Generate(request));  // a drain may need another one
  ExpectUsage(1, 0);
}

TEST_F(TwoStates, AStreamThatIsCancelledGivesBackWhatItDidNotUse) {
  engine_->AllowTokens(1);
  grpc::ClientContext context;
  v1::GenerateRequest request = Saving(100);
  request.mutable_save()->set_at_prompt_end(true);
  const auto reader = generation_->Generate(&context, request);
  engine_->AwaitOutputTokens(1);
  context.TryCancel();
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  executor_->WaitUntilIdle();
  while (engine_->Stats().live_streams > 0) std::this_thread::yield();
  executor_->WaitUntilIdle();
  ExpectUsage(2, 0);  // what was to be saved is saved at the point reached
}

TEST_F(TwoStates, AFailedSaveLeaksNothing) {
  store_.SetHook([](const statestore::Commit&) { return absl::UnavailableError("no disk"); });
  EXPECT_EQ(Generate(Saving()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  ExpectUsage(0, 0);
  engine_->FailNextSubmit(absl::ResourceExhaustedError("full"));
  EXPECT_FALSE(Generate(Saving()).status.ok());
  ExpectUsage(0, 0);
}

TEST_F(TwoStates, ADrainedStreamSavesWithWhatItHolds) {
  engine_->AllowTokens(1);
  v1::GenerateRequest request = Request(100);
  request.mutable_save()->set_at_prompt_end(true);
  std::thread drain([&] {
    engine_->AwaitOutputTokens(1);
    engine_->Drain(absl::Now());
  });
  const Answer answer = Generate(request);
  drain.join();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.finished.reason(), v1::DRAINED);
  EXPECT_TRUE(answer.finished.has_state());
  ExpectUsage(2, 0);
}

TEST_F(TwoStates, MetricsSayWhatIsUsed) {
  metrics_.SetQuotaSource([this] { return store_.GetQuota(DefaultTenant()); });
  ASSERT_TRUE(Generate(Saving()).status.ok());
  ASSERT_TRUE(Generate(Saving()).status.ok());
  ExpectRefused(Generate(Saving()));
  const std::string text = metrics_.Text();
  for (const char* line : {"vivarium_quota_states{tenant=\"default\"} 2",
                           "vivarium_quota_used_states{tenant=\"default\"} 2",
                           "vivarium_quota_reserved_states{tenant=\"default\"} 0",
                           "vivarium_quota_refusals_total{tenant=\"default\"} 1"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
  metrics_.SetQuotaSource(nullptr);
  EXPECT_EQ(metrics_.Text().find("vivarium_quota_"), std::string::npos);
}

class FourStates : public QuotaTest {
 protected:
  FourStates() : QuotaTest(WithQuota(4)) {}
};

TEST_F(FourStates, SnapshotsBeyondTheQuotaAreSkippedAndTheEndIsNot) {
  v1::GenerateRequest request = Saving(200);
  request.mutable_save()->set_every_tokens(16);
  engine_->AllowTokens(0);
  std::thread grant([&] {  // never more snapshots at once than may be in flight
    for (uint64_t num_tokens = 8; num_tokens <= 200; num_tokens += 8) {
      engine_->AllowTokens(8);
      engine_->AwaitOutputTokens(num_tokens);
      executor_->WaitUntilIdle();
    }
    engine_->AllowAllTokens();
  });
  const Answer answer = Generate(request);
  grant.join();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.saved.size(), 3u);
  EXPECT_GE(answer.finished.usage().skipped_snapshots(), 9u);
  EXPECT_TRUE(answer.finished.has_state());
  ExpectUsage(4, 0);
  // Nothing of the transcript is lost with what was skipped.
  uint64_t num_tokens = 0;
  auto chain = store_.Ancestry(DefaultTenant(), answer.finished.state().id(), 100);
  ASSERT_TRUE(chain.ok());
  ASSERT_EQ(chain->size(), 4u);
  for (const auto& manifest : *chain) num_tokens += manifest.transcript.size();
  EXPECT_EQ(num_tokens, 3u + 200u);
  // Not even one snapshot would find room.
  Delete(answer.saved[0].id());
  ExpectRefused(Generate(request));
  request.mutable_save()->set_every_tokens(0);
  EXPECT_TRUE(Generate(request).status.ok());
}

TEST_F(FourStates, ManyAtOnceNeverGetBeyondIt) {
  constexpr int kNumStreams = 24;
  std::atomic<int> num_saved{0};
  std::atomic<int> num_refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kNumStreams / 6; ++i) {
        const Answer answer = Generate(Saving());
        if (answer.status.ok()) {
          ++num_saved;
        } else {
          ++num_refused;
          ExpectRefused(answer);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_saved, 4);
  EXPECT_EQ(num_refused, kNumStreams - 4);
  ExpectUsage(4, 0);
}

class FewBytes : public QuotaTest {
 protected:
  static constexpr int64_t kStateBytes = kFakeSlotBytes + 32;  // with the chunk's envelope
  FewBytes() : QuotaTest(WithQuota(0, 3 * kStateBytes - 1)) {}
};

TEST_F(FewBytes, BytesAtTheLimitAndOnePast) {
  ASSERT_TRUE(Generate(Saving()).status.ok());
  ASSERT_TRUE(Generate(Saving()).status.ok());
  const Answer refused = Generate(Saving());
  ExpectRefused(refused);
  EXPECT_EQ(refused.error.metadata().at("what"), "bytes");
  EXPECT_EQ(refused.error.metadata().at("used"), absl::StrCat(2 * kStateBytes));
  EXPECT_EQ(refused.error.metadata().at("asked"), absl::StrCat(kStateBytes));
  EXPECT_EQ(refused.error.metadata().at("limit"), absl::StrCat(3 * kStateBytes - 1));
}

TEST_F(FewBytes, AnImportIsRefusedAtItsFirstMessage) {
  ASSERT_TRUE(Generate(Saving()).status.ok());
  ASSERT_TRUE(Generate(Saving()).status.ok());
  grpc::ClientContext context;
  v1::State state;
  const auto writer = states_->ImportState(&context, &state);
  v1::ImportStateRequest message;
  message.mutable_metadata();
  EXPECT_TRUE(writer->Write(message));
  const grpc::Status status = writer->Finish();  // not a byte of a file was sent
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ErrorInfoOf(status).reason(), "QUOTA_EXCEEDED");
}

TEST_F(FewBytes, AnImportThatFailsGivesItsQuotaBack) {
  ASSERT_TRUE(Generate(Saving()).status.ok());
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    v1::State state;
    const auto writer = states_->ImportState(&context, &state);
    v1::ImportStateRequest message;
    message.mutable_metadata();
    EXPECT_TRUE(writer->Write(message));
    message.set_data("no state");
    writer->Write(message);
    writer->WritesDone();
    EXPECT_NE(ErrorInfoOf(writer->Finish()).reason(), "QUOTA_EXCEEDED");
    ExpectUsage(1, 0);
  }
}

}  // namespace
}  // namespace vivarium::server
