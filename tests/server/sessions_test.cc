// The Sessions service: forks, history, rewind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class SessionsTest : public ServiceTest {
 protected:
  // One turn of session `name`: the state at its end.
  v1::State Turn(const std::string& name, const std::vector<int32_t>& ids) {
    v1::GenerateRequest request = Request(3);
    SetTokens(&request, ids);
    request.set_session(name);
    request.mutable_sampling()->set_seed(3);
    const Answer answer = Generate(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    return answer.finished.state();
  }

  grpc::Status Rewind(const v1::RewindSessionRequest& request, v1::Session* session) {
    grpc::ClientContext context;
    return sessions_stub_->RewindSession(&context, request, session);
  }

  v1::GetHistoryResponse History(const std::string& session) {
    grpc::ClientContext context;
    v1::GetHistoryRequest request;
    request.set_session(session);
    v1::GetHistoryResponse response;
    EXPECT_TRUE(sessions_stub_->GetHistory(&context, request, &response).ok());
    return response;
  }
};

TEST_F(SessionsTest, CreateIsAForkAndNamesAreTakenOnce) {
  const v1::State state = Turn("a", {1, 2});
  v1::CreateSessionRequest request;
  request.set_name("b");
  request.set_state_id(state.id());
  v1::Session session;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(sessions_stub_->CreateSession(&context, request, &session).ok());
  }
  EXPECT_EQ(session.name(), "b");
  EXPECT_EQ(session.head().id(), state.id());
  EXPECT_NE(session.etag(), "");
  {
    grpc::ClientContext context;
    const grpc::Status taken = sessions_stub_->CreateSession(&context, request, &session);
    EXPECT_EQ(taken.error_code(), StatusCode::ALREADY_EXISTS);
    EXPECT_EQ(ErrorInfoOf(taken).reason(), "SESSION_EXISTS");
  }
  const v1::State a = Turn("a", {7});
  const v1::State b = Turn("b", {8});
  EXPECT_EQ(a.parent_id(), b.parent_id());
  grpc::ClientContext context;
  v1::ListSessionsResponse list;
  ASSERT_TRUE(sessions_stub_->ListSessions(&context, {}, &list).ok());
  ASSERT_THAT(list.sessions(), SizeIs(2));
  EXPECT_EQ(list.sessions(0).name(), "a");
  EXPECT_EQ(list.sessions(1).head().id(), b.id());
}

TEST_F(SessionsTest, HistoryTellsTheWholeThreadOldestFirst) {
  const v1::State first = Turn("s", {1, 2});
  const v1::State second = Turn("s", {3});
  const v1::GetHistoryResponse history = History("s");
  ASSERT_THAT(history.states(), SizeIs(2));
  EXPECT_FALSE(history.is_truncated());
  EXPECT_EQ(history.states(0).id(), first.id());
  EXPECT_EQ(history.states(1).id(), second.id());
  ASSERT_EQ(history.states(1).transcript_size(), 2);
  EXPECT_THAT(history.states(0).transcript(0).token_ids(), ElementsAre(1, 2));
  EXPECT_THAT(history.states(1).transcript(0).token_ids(), ElementsAre(3));
  EXPECT_EQ(history.states(1).transcript(1).token_ids_size(), 3);
}

TEST_F(SessionsTest, LongHistoriesComeInParts) {
  v1::GenerateRequest request = Request(1);
  request.set_session("s");
  for (int i = 0; i < 1005; ++i) ASSERT_TRUE(Generate(request).status.ok());
  const v1::GetHistoryResponse newest = History("s");
  EXPECT_THAT(newest.states(), SizeIs(1000));
  EXPECT_TRUE(newest.is_truncated());
  grpc::ClientContext context;
  v1::GetHistoryRequest rest;
  rest.set_state_id(newest.states(0).parent_id());
  v1::GetHistoryResponse oldest;
  ASSERT_TRUE(sessions_stub_->GetHistory(&context, rest, &oldest).ok());
  EXPECT_THAT(oldest.states(), SizeIs(5));
  EXPECT_FALSE(oldest.is_truncated());
}

TEST_F(SessionsTest, RewindByStateStepsAndPosition) {
  std::vector<v1::State> turns;
  for (int i = 0; i < 4; ++i) turns.push_back(Turn("s", {i + 1, i + 2}));
  v1::Session session;
  v1::RewindSessionRequest request;
  request.set_name("s");
  request.set_steps(1);
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().id(), turns[2].id());
  const std::string etag = session.etag();
  request.set_position(turns[1].position() + 1);
  request.set_expected_etag(etag);
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().id(), turns[1].id());
  EXPECT_NE(session.etag(), etag);
  const grpc::Status stale = Rewind(request, &session);
  EXPECT_EQ(stale.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(ErrorInfoOf(stale).reason(), "STALE_ETAG");
  request.clear_expected_etag();
  request.set_state_id(turns[0].id());
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().id(), turns[0].id());
  // Going on from there is a fork; what was ahead is still there.
  EXPECT_EQ(Turn("s", {2, 3}).parent_id(), turns[0].id());
}

TEST_F(SessionsTest, RewindsThatCannotBe) {
  const v1::State other = Turn("other", {9});
  const v1::State first = Turn("s", {1});
  const v1::State second = Turn("s", {2});
  const auto expect = [&](const v1::RewindSessionRequest& request, StatusCode code) {
    v1::Session session;
    const grpc::Status status = Rewind(request, &session);
    EXPECT_EQ(status.error_code(), code) << request.ShortDebugString();
    EXPECT_NE(ErrorInfoOf(status).reason(), "");
  };
  v1::RewindSessionRequest request;
  request.set_name("s");
  expect(request, StatusCode::INVALID_ARGUMENT);
  request.set_steps(0);
  expect(request, StatusCode::INVALID_ARGUMENT);
  request.set_steps(2);
  expect(request, StatusCode::FAILED_PRECONDITION);
  request.set_steps(4000000000u);
  expect(request, StatusCode::FAILED_PRECONDITION);
  request.set_position(0);
  expect(request, StatusCode::FAILED_PRECONDITION);
  request.set_state_id(other.id());
  expect(request, StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(store_.GetSession(DefaultTenant(), "s")->head, second.id());
}

// A thread of `num_states`, every tenth of them no snapshot, of which some were thinned since.
class LongThreadTest : public SessionsTest {
 protected:
  static constexpr uint64_t kNumStates = 1100;
  LongThreadTest() {
    const v1::State first = Turn("s", {1, 2, 3});
    auto saved = store_.Load(DefaultTenant(), first.id());
    EXPECT_TRUE(saved.ok());
    statestore::StateManifest manifest = saved->manifest;
    manifest.transcript = {{1, false}};
    for (uint64_t i = 0; i < kNumStates; ++i) {
      manifest.parent_id = i == 0 ? "" : ids_of_thread_.back();
      manifest.id = ids_.NextStateId();
      manifest.position = 100 + 10 * i;
      manifest.is_snapshot = i % 10 != 0;
      ids_of_thread_.push_back(manifest.id);
      statestore::Commit commit;
      commit.tenant = DefaultTenant();
      commit.states.push_back({manifest, &saved->slot});
      if (i + 1 == kNumStates) {
        commit.head_move = statestore::Commit::HeadMove{"s", manifest.id, "*"};
      }
      // All but the odd tens.
      if (i > 10 && i % 10 == 9 && i / 10 % 2 == 0) {
        for (uint64_t n = i - 8; n < i; ++n) commit.thinned.push_back(ids_of_thread_[n]);
      }
      EXPECT_TRUE(store_.Apply(commit).ok());
    }
  }
  static uint64_t PositionOf(uint64_t i) { return 100 + 10 * i; }
  std::vector<std::string> ids_of_thread_;
};

TEST_F(LongThreadTest, RewindsToAnyDepthAndNamesWhatIsLeft) {
  v1::RewindSessionRequest request;
  v1::Session session;
  request.set_name("s");
  // Thinned: by id it can't be, and the error says what can.
  request.set_state_id(ids_of_thread_[25]);
  grpc::Status status = Rewind(request, &session);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ErrorInfoOf(status).reason(), "CANT_REWIND");
  for (uint64_t i : {uint64_t{20}, uint64_t{29}}) {
    EXPECT_THAT(status.error_message(),
                HasSubstr(absl::StrCat(PositionOf(i), " (", ids_of_thread_[i])));
  }
  // A hundred and one turns back, over a thousand states.
  request.set_steps(101);
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().position(), PositionOf(kNumStates - 10 - 1000));
  request.set_position(99);
  status = Rewind(request, &session);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("its oldest state is at 100"));
  request.set_position(PositionOf(25));  // the newest that is left at or before it
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().id(), ids_of_thread_[20]);
  request.set_position(PositionOf(15) + 3);
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().id(), ids_of_thread_[15]);
  EXPECT_THAT(History("s").states(), SizeIs(16));
  request.set_position(~uint64_t{0});  // that is where it is
  ASSERT_TRUE(Rewind(request, &session).ok());
  EXPECT_EQ(session.head().id(), ids_of_thread_[15]);
}

TEST_F(SessionsTest, DeleteLeavesTheStates) {
  const v1::State state = Turn("s", {1});
  v1::DeleteSessionRequest request;
  request.set_name("s");
  request.set_expected_etag("stale");
  google::protobuf::Empty empty;
  {
    grpc::ClientContext context;
    EXPECT_EQ(sessions_stub_->DeleteSession(&context, request, &empty).error_code(),
              StatusCode::ABORTED);
  }
  request.clear_expected_etag();
  {
    grpc::ClientContext context;
    ASSERT_TRUE(sessions_stub_->DeleteSession(&context, request, &empty).ok());
  }
  grpc::ClientContext context;
  v1::GetSessionRequest get;
  get.set_name("s");
  v1::Session session;
  EXPECT_EQ(sessions_stub_->GetSession(&context, get, &session).error_code(),
            StatusCode::NOT_FOUND);
  EXPECT_TRUE(store_.GetManifest(DefaultTenant(), state.id()).ok());
}

}  // namespace
}  // namespace vivarium::server
