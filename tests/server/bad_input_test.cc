// Every RPC with arguments that are missing, huge, negative, contradictory, unknown, malformed: a
// clear error with an ErrorInfo, and a server that goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "server/request.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;

constexpr char kUnknownState[] = "st_00000000000000000000000000";

class BadInputTest : public ServiceTest {
 protected:
  ~BadInputTest() override {
    EXPECT_EQ(engine_->Stats().consumed_tokens, 0u);  // nothing got as far as the engine
    EXPECT_TRUE(Generate(Request(1)).status.ok());
  }

  // The request, changed, is refused naming `field`.
  void ExpectInvalid(const std::string& field,
                     const std::function<void(v1::GenerateRequest*)>& change) {
    v1::GenerateRequest request = Request();
    change(&request);
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), StatusCode::INVALID_ARGUMENT)
        << field << ": " << answer.status.error_message();
    EXPECT_EQ(answer.error.reason(), "INVALID_FIELD") << field;
    EXPECT_EQ(answer.error.domain(), "vivarium") << field;
    EXPECT_THAT(answer.error.metadata().at("field"), HasSubstr(field));
    EXPECT_THAT(answer.status.error_message(), HasSubstr("expected")) << field;
    EXPECT_TRUE(answer.messages.empty()) << field;
  }

  template <typename Request, typename Response, typename Stub>
  void ExpectError(Stub* stub,
                   grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                   const Request& request, StatusCode code, const std::string& reason) {
    grpc::ClientContext context;
    Response response;
    const grpc::Status status = (stub->*method)(&context, request, &response);
    EXPECT_EQ(status.error_code(), code)
        << request.ShortDebugString() << ": " << status.error_message();
    EXPECT_EQ(ErrorInfoOf(status).reason(), reason) << request.ShortDebugString();
    EXPECT_EQ(ErrorInfoOf(status).domain(), "vivarium");
  }
};

TEST_F(BadInputTest, GenerateSourceAndInput) {
  ExpectInvalid("input", [](auto* r) { r->clear_input(); });
  ExpectInvalid("input", [](auto* r) { r->mutable_token_ids()->clear_ids(); });
  ExpectInvalid("input", [](auto* r) {
    r->clear_input();
    r->set_session("absent");
  });
  ExpectInvalid("input", [](auto* r) {
    r->clear_input();
    r->set_session("s");
    r->set_fresh(true);
  });
  ExpectInvalid("token_ids[1]", [](auto* r) { SetTokens(r, {1, -1}); });
  ExpectInvalid("token_ids[0]", [](auto* r) { SetTokens(r, {kFakeVocabSize}); });
  ExpectInvalid("token_ids", [](auto* r) { SetTokens(r, std::vector<int32_t>((1 << 20) + 1, 1)); });
  ExpectInvalid("text", [](auto* r) { r->set_text(std::string(kMaxTextBytes + 1, 'x')); });
  ExpectInvalid("parse_special", [](auto* r) { r->set_parse_special(true); });
  ExpectInvalid("state_id", [](auto* r) { r->set_state_id(""); });
  ExpectInvalid("state_id", [](auto* r) { r->set_state_id("../../etc/passwd"); });
  ExpectInvalid("state_id", [](auto* r) { r->set_state_id(std::string(100000, 'x')); });
  ExpectInvalid("session", [](auto* r) { r->set_session("a/b"); });
  ExpectInvalid("session", [](auto* r) { r->set_session(std::string(129, 'a')); });
  ExpectInvalid("expected_etag", [](auto* r) { r->set_expected_etag("x"); });
  ExpectInvalid("chat.messages.role",
                [](auto* r) { r->mutable_chat()->add_messages()->set_content("hello"); });
  ExpectInvalid("chat.messages", [](auto* r) {
    for (size_t i = 0; i <= engine::kMaxChatMessages; ++i) {
      r->mutable_chat()->add_messages()->set_role("user");
    }
  });
}

TEST_F(BadInputTest, GenerateNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  ExpectInvalid("max_tokens", [](auto* r) { r->set_max_tokens(-1); });
  ExpectInvalid("max_tokens", [](auto* r) { r->set_max_tokens((1 << 20) + 1); });
  ExpectInvalid("min_tokens", [](auto* r) { r->set_min_tokens(-1); });
  ExpectInvalid("min_tokens", [](auto* r) { r->set_min_tokens(5); });  // above max_tokens
  ExpectInvalid("priority", [](auto* r) { r->set_priority(101); });
  for (const float bad : {-0.1f, 1e9f, nan, infinity}) {
    ExpectInvalid("sampling.temperature",
                  [&](auto* r) { r->mutable_sampling()->set_temperature(bad); });
  }
  ExpectInvalid("sampling.top_k", [](auto* r) { r->mutable_sampling()->set_top_k(-1); });
  for (const float bad : {0.0f, -1.0f, 1.5f, nan}) {
    ExpectInvalid("sampling.top_p", [&](auto* r) { r->mutable_sampling()->set_top_p(bad); });
  }
  for (const float bad : {-0.5f, 1.5f, nan}) {
    ExpectInvalid("sampling.min_p", [&](auto* r) { r->mutable_sampling()->set_min_p(bad); });
  }
  ExpectInvalid("sampling.repetition_penalty",
                [](auto* r) { r->mutable_sampling()->set_repetition_penalty(0); });
  ExpectInvalid("sampling.presence_penalty",
                [](auto* r) { r->mutable_sampling()->set_presence_penalty(101); });
  ExpectInvalid("sampling.frequency_penalty",
                [&](auto* r) { r->mutable_sampling()->set_frequency_penalty(nan); });
  ExpectInvalid("sampling.logprobs", [](auto* r) { r->mutable_sampling()->set_logprobs(21); });
  ExpectInvalid("sampling.logprobs", [](auto* r) { r->mutable_sampling()->set_logprobs(-1); });
  ExpectInvalid("sampling.logit_bias",
                [](auto* r) { (*r->mutable_sampling()->mutable_logit_bias())[1] = 101; });
  ExpectInvalid("sampling.logit_bias", [](auto* r) {
    for (int i = 0; i <= engine::kMaxLogitBias; ++i) {
      (*r->mutable_sampling()->mutable_logit_bias())[i] = 1;
    }
  });
}

TEST_F(BadInputTest, GenerateStopsSavesAndNames) {
  ExpectInvalid("stops.strings", [](auto* r) { r->mutable_stops()->add_strings(""); });
  ExpectInvalid("stops.strings",
                [](auto* r) { r->mutable_stops()->add_strings(std::string(257, 'x')); });
  ExpectInvalid("stops.strings", [](auto* r) {
    for (int i = 0; i < 17; ++i) r->mutable_stops()->add_strings("x");
  });
  ExpectInvalid("stops.token_ids", [](auto* r) { r->mutable_stops()->add_token_ids(-5); });
  ExpectInvalid("stops.token_ids", [](auto* r) {
    for (int i = 0; i < 65; ++i) r->mutable_stops()->add_token_ids(i);
  });
  ExpectInvalid("save.every_tokens", [](auto* r) { r->mutable_save()->set_every_tokens(15); });
  ExpectInvalid("ttl", [](auto* r) { r->mutable_ttl()->set_seconds(-1); });
  ExpectInvalid("ttl", [](auto* r) { r->mutable_ttl()->set_seconds(0); });
  ExpectInvalid(
      "ttl", [](auto* r) { r->mutable_ttl()->set_seconds(std::numeric_limits<int64_t>::max()); });
  ExpectInvalid("ttl", [](auto* r) { r->mutable_ttl()->set_nanos(-2'000'000'000); });
  ExpectInvalid("labels", [](auto* r) { (*r->mutable_labels())[""] = "x"; });
  ExpectInvalid("labels", [](auto* r) { (*r->mutable_labels())[std::string(129, 'k')] = "x"; });
  ExpectInvalid("labels.k", [](auto* r) { (*r->mutable_labels())["k"] = std::string(129, 'v'); });
  ExpectInvalid("labels", [](auto* r) {
    for (int i = 0; i < 33; ++i) (*r->mutable_labels())[std::to_string(i)] = "x";
  });
  ExpectInvalid("request_id", [](auto* r) { r->set_request_id("nothing is saved"); });
  ExpectInvalid("request_id", [](auto* r) {
    r->set_session("s");
    r->set_request_id(std::string(129, 'x'));
  });
}

TEST_F(BadInputTest, GenerateWithWhatIsNotThere) {
  v1::GenerateRequest request = Request();
  request.set_state_id(kUnknownState);
  Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(answer.error.reason(), "STATE_NOT_FOUND");
  EXPECT_EQ(answer.error.metadata().at("state_id"), kUnknownState);
  request = Request();
  request.set_session("absent");
  request.set_expected_etag("x");
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(answer.error.reason(), "STALE_ETAG");
  // Without a tokenizer there are neither texts nor chats.
  request.set_text("hello");
  request.clear_expected_etag();
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(answer.error.reason(), "NO_TOKENIZER");
  request.mutable_chat()->add_messages()->set_role("user");
  EXPECT_EQ(Generate(request).error.reason(), "NO_TOKENIZER");
}

TEST_F(BadInputTest, BrokenUtf8IsAnErrorAndNoCrash) {
  v1::GenerateRequest request;
  request.set_text("\xff\xfe");
  EXPECT_FALSE(Generate(request).status.ok());
  request = Request();
  request.mutable_stops()->add_strings("\xc3");
  EXPECT_FALSE(Generate(request).status.ok());
  request = Request();
  request.set_session("\xc3\x28");
  EXPECT_FALSE(Generate(request).status.ok());
}

TEST_F(BadInputTest, ScoreAndTokenize) {
  using Stub = v1::Generation::Stub;
  v1::ScoreRequest score;
  ExpectError(generation_.get(), &Stub::Score, score, StatusCode::INVALID_ARGUMENT,
              "INVALID_FIELD");
  score.mutable_token_ids()->add_ids(-1);
  ExpectError(generation_.get(), &Stub::Score, score, StatusCode::INVALID_ARGUMENT,
              "INVALID_FIELD");
  score.mutable_token_ids()->set_ids(0, 1);
  score.add_state_ids(kUnknownState);
  ExpectError(generation_.get(), &Stub::Score, score, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  score.set_state_ids(0, "x");
  ExpectError(generation_.get(), &Stub::Score, score, StatusCode::INVALID_ARGUMENT,
              "INVALID_FIELD");
  score.set_state_ids(0, kUnknownState);
  for (size_t i = 0; i < kMaxScoreStates; ++i) score.add_state_ids(kUnknownState);
  ExpectError(generation_.get(), &Stub::Score, score, StatusCode::INVALID_ARGUMENT,
              "INVALID_FIELD");
  v1::TokenizeRequest tokenize;
  ExpectError(generation_.get(), &Stub::Tokenize, tokenize, StatusCode::INVALID_ARGUMENT,
              "INVALID_FIELD");
  tokenize.set_text("x");
  ExpectError(generation_.get(), &Stub::Tokenize, tokenize, StatusCode::FAILED_PRECONDITION,
              "NO_TOKENIZER");
}

TEST_F(BadInputTest, States) {
  using Stub = v1::States::Stub;
  Stub* const stub = states_.get();
  for (const std::string id : {"", "st_", "x", "st_0000000000000000000000000U", "st_\n"}) {
    v1::GetStateRequest get;
    get.set_id(id);
    ExpectError(stub, &Stub::GetState, get, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
    v1::DeleteStateRequest remove;
    remove.set_id(id);
    ExpectError(stub, &Stub::DeleteState, remove, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
    v1::VerifyStateRequest verify;
    verify.set_id(id);
    ExpectError(stub, &Stub::VerifyState, verify, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
    v1::UpdateStateRequest update;
    update.mutable_state()->set_id(id);
    update.mutable_update_mask()->add_paths("pinned");
    ExpectError(stub, &Stub::UpdateState, update, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  }
  v1::GetStateRequest get;
  get.set_id(kUnknownState);
  ExpectError(stub, &Stub::GetState, get, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  v1::DeleteStateRequest remove;
  remove.set_id(kUnknownState);
  ExpectError(stub, &Stub::DeleteState, remove, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  v1::VerifyStateRequest verify;
  verify.set_id(kUnknownState);
  ExpectError(stub, &Stub::VerifyState, verify, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  v1::UpdateStateRequest update;
  update.mutable_state()->set_id(kUnknownState);
  ExpectError(stub, &Stub::UpdateState, update, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  update.mutable_update_mask()->add_paths("position");
  ExpectError(stub, &Stub::UpdateState, update, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  update.mutable_update_mask()->set_paths(0, "expire_time");
  update.mutable_state()->mutable_expire_time()->set_nanos(-1);
  ExpectError(stub, &Stub::UpdateState, update, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  update.mutable_state()->clear_expire_time();
  ExpectError(stub, &Stub::UpdateState, update, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  v1::ListStatesRequest list;
  list.set_page_size(-1);
  ExpectError(stub, &Stub::ListStates, list, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  list.set_page_size(std::numeric_limits<int32_t>::max());
  list.set_page_token("forged");
  ExpectError(stub, &Stub::ListStates, list, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  list.clear_page_token();
  list.set_parent_id("x");
  ExpectError(stub, &Stub::ListStates, list, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  list.clear_parent_id();
  list.set_session("a b");
  ExpectError(stub, &Stub::ListStates, list, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
}

TEST_F(BadInputTest, Sessions) {
  using Stub = v1::Sessions::Stub;
  Stub* const stub = sessions_stub_.get();
  v1::CreateSessionRequest create;
  create.set_name("s");
  ExpectError(stub, &Stub::CreateSession, create, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  create.set_state_id(kUnknownState);
  ExpectError(stub, &Stub::CreateSession, create, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  create.set_name("");
  ExpectError(stub, &Stub::CreateSession, create, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  v1::GetSessionRequest get;
  ExpectError(stub, &Stub::GetSession, get, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  get.set_name("absent");
  ExpectError(stub, &Stub::GetSession, get, StatusCode::NOT_FOUND, "SESSION_NOT_FOUND");
  v1::GetHistoryRequest history;
  ExpectError(stub, &Stub::GetHistory, history, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  history.set_session("absent");
  ExpectError(stub, &Stub::GetHistory, history, StatusCode::NOT_FOUND, "SESSION_NOT_FOUND");
  history.set_state_id(kUnknownState);
  ExpectError(stub, &Stub::GetHistory, history, StatusCode::NOT_FOUND, "STATE_NOT_FOUND");
  v1::RewindSessionRequest rewind;
  rewind.set_name("absent");
  rewind.set_steps(1);
  ExpectError(stub, &Stub::RewindSession, rewind, StatusCode::NOT_FOUND, "SESSION_NOT_FOUND");
  rewind.set_state_id("x");
  ExpectError(stub, &Stub::RewindSession, rewind, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  v1::DeleteSessionRequest remove;
  remove.set_name("absent");
  ExpectError(stub, &Stub::DeleteSession, remove, StatusCode::NOT_FOUND, "SESSION_NOT_FOUND");
  v1::ListSessionsRequest list;
  list.set_page_size(-7);
  ExpectError(stub, &Stub::ListSessions, list, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  list.set_page_size(1);
  list.set_page_token("forged");
  ExpectError(stub, &Stub::ListSessions, list, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
}

TEST_F(BadInputTest, Admin) {
  using Stub = v1::Admin::Stub;
  v1::BackupRequest backup;
  backup.set_name("b");
  ExpectError(admin_.get(), &Stub::Backup, backup, StatusCode::FAILED_PRECONDITION, "NO_BACKUPS");
  v1::BackupRequest set;
  set.set_set("s");
  ExpectError(admin_.get(), &Stub::Backup, set, StatusCode::FAILED_PRECONDITION, "NO_BACKUPS");
  for (const std::string name : {"", ".", "..", "../x", "a/b"}) {
    backup.set_name(name);
    ExpectError(admin_.get(), &Stub::Backup, backup, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
    set.set_set(name);
    ExpectError(admin_.get(), &Stub::Backup, set, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  }
  backup.set_name("b");
  backup.set_set("s");
  ExpectError(admin_.get(), &Stub::Backup, backup, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  v1::DrainRequest drain;
  drain.mutable_deadline()->set_seconds(-1);
  ExpectError(admin_.get(), &Stub::Drain, drain, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  drain.mutable_deadline()->set_seconds(std::numeric_limits<int64_t>::max());
  ExpectError(admin_.get(), &Stub::Drain, drain, StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  EXPECT_EQ(num_drains_, 0);
}

}  // namespace
}  // namespace vivarium::server
