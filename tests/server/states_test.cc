// The States service, and the rest of what isn't generation: Score, Models, Admin.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "google/protobuf/util/message_differencer.h"
#include "tests/server/service_fixture.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class StatesTest : public ServiceTest {
 protected:
  v1::State Save(const std::map<std::string, std::string>& labels = {},
                 const std::string& parent = "") {
    v1::GenerateRequest request = Request(4);
    if (!parent.empty()) request.set_state_id(parent);
    request.mutable_sampling()->set_seed(5);
    request.mutable_save()->set_at_end(true);
    for (const auto& [key, value] : labels) (*request.mutable_labels())[key] = value;
    const Answer answer = Generate(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    return answer.finished.state();
  }

  grpc::Status Get(const std::string& id, v1::State* state, bool with_transcript = false) {
    grpc::ClientContext context;
    v1::GetStateRequest request;
    request.set_id(id);
    request.set_with_transcript(with_transcript);
    return states_->GetState(&context, request, state);
  }

  grpc::Status Delete(const std::string& id) {
    grpc::ClientContext context;
    v1::DeleteStateRequest request;
    request.set_id(id);
    google::protobuf::Empty empty;
    return states_->DeleteState(&context, request, &empty);
  }

  std::string Export(const std::string& id) {
    grpc::ClientContext context;
    v1::ExportStateRequest request;
    request.set_id(id);
    const auto reader = states_->ExportState(&context, request);
    std::string file;
    v1::ExportStateResponse piece;
    while (reader->Read(&piece)) {
      EXPECT_LE(piece.data().size(), size_t{1} << 20);
      file += piece.data();
    }
    EXPECT_TRUE(reader->Finish().ok());
    return file;
  }

  grpc::Status Import(const std::string& file, v1::State* state, const std::string& session = "",
                      size_t piece_bytes = 100) {
    grpc::ClientContext context;
    const auto writer = states_->ImportState(&context, state);
    v1::ImportStateRequest message;
    message.mutable_metadata()->set_session(session);
    (*message.mutable_metadata()->mutable_labels())["from"] = "file";
    writer->Write(message);
    for (size_t i = 0; i < file.size(); i += piece_bytes) {
      message.set_data(file.substr(i, piece_bytes));
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  }

  std::vector<int32_t> Continue(const std::string& id) {
    v1::GenerateRequest request;
    request.set_state_id(id);
    request.set_max_tokens(10);
    return Generate(request).token_ids;
  }
};

TEST_F(StatesTest, GetTellsTheTranscriptOnlyWhereAskedFor) {
  const v1::State saved = Save({{"k", "v"}});
  v1::State state;
  ASSERT_TRUE(Get(saved.id(), &state).ok());
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(state, saved));
  EXPECT_EQ(state.labels().at("k"), "v");
  EXPECT_EQ(state.transcript_size(), 0);
  ASSERT_TRUE(Get(saved.id(), &state, true).ok());
  ASSERT_EQ(state.transcript_size(), 2);
  EXPECT_FALSE(state.transcript(0).is_output());
  EXPECT_THAT(state.transcript(0).token_ids(), ElementsAre(1, 2, 3));
  EXPECT_TRUE(state.transcript(1).is_output());
  EXPECT_EQ(state.transcript(1).token_ids_size(), 4);
}

TEST_F(StatesTest, ListPagesNewestFirstAndFilters) {
  std::vector<std::string> ids;
  for (int i = 0; i < 7; ++i) ids.push_back(Save({{"odd", i % 2 ? "yes" : "no"}}).id());
  const std::string child = Save({}, ids[0]).id();
  v1::ListStatesRequest request;
  request.set_page_size(3);
  std::vector<std::string> listed;
  do {
    grpc::ClientContext context;
    v1::ListStatesResponse response;
    ASSERT_TRUE(states_->ListStates(&context, request, &response).ok());
    EXPECT_LE(response.states_size(), 3);
    for (const v1::State& state : response.states()) listed.push_back(state.id());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  std::vector<std::string> expected(ids.rbegin(), ids.rend());
  expected.insert(expected.begin(), child);
  EXPECT_EQ(listed, expected);

  request.Clear();
  (*request.mutable_labels())["odd"] = "yes";
  {
    grpc::ClientContext context;
    v1::ListStatesResponse response;
    ASSERT_TRUE(states_->ListStates(&context, request, &response).ok());
    EXPECT_THAT(response.states(), SizeIs(3));
  }
  request.Clear();
  request.set_parent_id(ids[0]);
  grpc::ClientContext context;
  v1::ListStatesResponse response;
  ASSERT_TRUE(states_->ListStates(&context, request, &response).ok());
  ASSERT_THAT(response.states(), SizeIs(1));
  EXPECT_EQ(response.states(0).id(), child);
}

TEST_F(StatesTest, UpdateDeleteVerify) {
  const std::string id = Save({{"k", "v"}}).id();
  v1::UpdateStateRequest update;
  update.mutable_state()->set_id(id);
  update.mutable_state()->set_pinned(true);
  (*update.mutable_state()->mutable_labels())["new"] = "x";
  update.mutable_update_mask()->add_paths("pinned");
  update.mutable_update_mask()->add_paths("labels");
  v1::State state;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(states_->UpdateState(&context, update, &state).ok());
  }
  EXPECT_TRUE(state.pinned());
  EXPECT_EQ(state.labels().size(), 1u);
  EXPECT_EQ(state.labels().at("new"), "x");
  {
    grpc::ClientContext context;
    v1::VerifyStateRequest verify;
    verify.set_id(id);
    v1::VerifyStateResponse response;
    ASSERT_TRUE(states_->VerifyState(&context, verify, &response).ok());
    EXPECT_EQ(response.verified_bytes(), state.size_bytes());
  }
  const grpc::Status pinned = Delete(id);
  EXPECT_EQ(pinned.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ErrorInfoOf(pinned).reason(), "STATE_IN_USE");
  update.mutable_state()->set_pinned(false);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(states_->UpdateState(&context, update, &state).ok());
  }
  EXPECT_TRUE(Delete(id).ok());
  EXPECT_EQ(Get(id, &state).error_code(), StatusCode::NOT_FOUND);
}

TEST_F(StatesTest, AnExportedStateComesBackTheSame) {
  const v1::State saved = Save();
  const std::string file = Export(saved.id());
  v1::State imported;
  const grpc::Status status = Import(file, &imported, "imported");
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_NE(imported.id(), saved.id());
  EXPECT_EQ(imported.parent_id(), "");
  EXPECT_EQ(imported.position(), saved.position());
  EXPECT_EQ(imported.labels().at("from"), "file");
  EXPECT_EQ(Continue(imported.id()), Continue(saved.id()));
  EXPECT_EQ(store_.GetSession(DefaultTenant(), "imported")->head, imported.id());
  v1::State again;
  const grpc::Status taken = Import(file, &again, "imported");
  EXPECT_EQ(taken.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ErrorInfoOf(taken).reason(), "SESSION_EXISTS");
  EXPECT_EQ(store_.Stats()->num_states, 2u);
}

TEST_F(StatesTest, DamagedFilesAreRefusedAndNothingIsStored) {
  const std::string file = Export(Save().id());
  const uint64_t num_states = store_.Stats()->num_states;
  v1::State state;
  for (size_t i = 0; i < file.size(); i += 3) {
    std::string damaged = file;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    const grpc::Status status = Import(damaged, &state);
    EXPECT_FALSE(status.ok()) << "byte " << i;
    EXPECT_NE(ErrorInfoOf(status).reason(), "") << "byte " << i;
  }
  EXPECT_EQ(Import(file.substr(0, file.size() - 1), &state).error_code(), StatusCode::DATA_LOSS);
  EXPECT_FALSE(Import(file + "x", &state).ok());
  EXPECT_FALSE(Import("", &state).ok());
  EXPECT_EQ(store_.Stats()->num_states, num_states);
}

TEST_F(StatesTest, ExportsNothingOfWhatIsNotThere) {
  const auto export_status = [&](const std::string& id) {
    grpc::ClientContext context;
    v1::ExportStateRequest request;
    request.set_id(id);
    const auto reader = states_->ExportState(&context, request);
    v1::ExportStateResponse piece;
    EXPECT_FALSE(reader->Read(&piece));
    return reader->Finish();
  };
  for (const std::string id : {"", "st_", "x", "st_0000000000000000000000000U"}) {
    const grpc::Status malformed = export_status(id);
    EXPECT_EQ(malformed.error_code(), StatusCode::INVALID_ARGUMENT) << id;
    EXPECT_EQ(ErrorInfoOf(malformed).reason(), "INVALID_FIELD") << id;
  }
  const grpc::Status unknown = export_status("st_00000000000000000000000000");
  EXPECT_EQ(unknown.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(ErrorInfoOf(unknown).reason(), "STATE_NOT_FOUND");
}

TEST_F(StatesTest, ImportsThatBreakTheProtocolOrAreOfAnotherModel) {
  const std::string file = Export(Save().id());
  v1::State state;
  {
    grpc::ClientContext context;  // data without metadata
    const auto writer = states_->ImportState(&context, &state);
    v1::ImportStateRequest message;
    message.set_data(file);
    writer->Write(message);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(ErrorInfoOf(status).metadata().at("field"), "metadata");
  }
  {
    grpc::ClientContext context;  // nothing at all
    const auto writer = states_->ImportState(&context, &state);
    writer->WritesDone();
    EXPECT_EQ(writer->Finish().error_code(), StatusCode::INVALID_ARGUMENT);
  }
  const grpc::Status big = Import(std::string((2 << 20) + 1, 'x'), &state, "", 3 << 20);
  EXPECT_EQ(big.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorInfoOf(big).metadata().at("field"), "data");
  EXPECT_EQ(Import(file, &state, "bad name").error_code(), StatusCode::INVALID_ARGUMENT);
  parts_.model.identity.fingerprint = "another";
  const grpc::Status other = Import(file, &state);
  EXPECT_EQ(other.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ErrorInfoOf(other).reason(), "MODEL_MISMATCH");
  parts_.model.identity.fingerprint = "fingerprint";
  parts_.model.config.vocab_size = 2;  // its tokens don't exist here
  EXPECT_EQ(Import(file, &state).error_code(), StatusCode::INVALID_ARGUMENT);
  parts_.model.config.vocab_size = kFakeVocabSize;
  {
    grpc::ClientContext context;  // cancelled in the middle
    const auto writer = states_->ImportState(&context, &state);
    v1::ImportStateRequest message;
    message.mutable_metadata();
    writer->Write(message);
    context.TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), StatusCode::CANCELLED);
  }
}

TEST_F(StatesTest, ScoreTakesManyStatesInOrder) {
  const v1::State a = Save();
  const v1::State b = Save({}, a.id());
  v1::ScoreRequest request;
  request.add_state_ids(b.id());
  request.add_state_ids(a.id());
  request.mutable_token_ids()->add_ids(4);
  request.mutable_token_ids()->add_ids(5);
  grpc::ClientContext context;
  v1::ScoreResponse response;
  const grpc::Status status = generation_->Score(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_THAT(response.scores(), SizeIs(2));
  EXPECT_EQ(response.scores(0).state_id(), b.id());
  EXPECT_EQ(response.scores(1).state_id(), a.id());
  EXPECT_THAT(response.scores(0).logprobs(), ElementsAre(-0.25f, -0.25f));
  EXPECT_EQ(response.scores(0).total_logprob(), -0.5);
  EXPECT_EQ(response.scores(0).restored_tokens(), b.position());
  EXPECT_THAT(response.token_ids(), ElementsAre(4, 5));
  request.clear_state_ids();
  grpc::ClientContext from_nothing;
  ASSERT_TRUE(generation_->Score(&from_nothing, request, &response).ok());
  ASSERT_THAT(response.scores(), SizeIs(1));
  EXPECT_THAT(response.scores(0).logprobs(), ElementsAre(-0.25f));
  parts_.is_draining = true;
  grpc::ClientContext draining;
  EXPECT_EQ(generation_->Score(&draining, request, &response).error_code(),
            StatusCode::UNAVAILABLE);
}

TEST_F(StatesTest, ModelStatsDrainMetrics) {
  Save();
  {
    grpc::ClientContext context;
    v1::Model model;
    ASSERT_TRUE(models_->GetModel(&context, {}, &model).ok());
    EXPECT_EQ(model.name(), "fake");
    EXPECT_EQ(model.vocab_size(), kFakeVocabSize);
    EXPECT_EQ(model.state_bytes(), kFakeSlotBytes);
    EXPECT_FALSE(model.has_chat_format());
    EXPECT_EQ(model.max_tokens(), 1 << 20);
  }
  {
    grpc::ClientContext context;
    v1::Stats stats;
    ASSERT_TRUE(admin_->GetStats(&context, {}, &stats).ok());
    EXPECT_EQ(stats.num_states(), 1u);
    EXPECT_EQ(stats.output_tokens(), 4u);
    EXPECT_GT(stats.rss_bytes(), 1u << 20);
    EXPECT_EQ(stats.version(), "0.1.0");
  }
  {
    grpc::ClientContext context;
    google::protobuf::Empty empty;
    ASSERT_TRUE(admin_->Drain(&context, {}, &empty).ok());
    EXPECT_EQ(num_drains_, 1);
  }
  metrics_.SetEngine(engine_.get());
  const std::string text = metrics_.Text();
  EXPECT_THAT(text, HasSubstr("vivarium_rpcs_total{code=\"OK\",method=\"Generate\"} 1"));
  EXPECT_THAT(text, HasSubstr("vivarium_generate_sources_total{source=\"no_source\"} 1"));
  EXPECT_THAT(text, HasSubstr("vivarium_output_tokens_total 4"));
  EXPECT_THAT(text, HasSubstr("vivarium_computed_prompt_tokens_total 3"));
  EXPECT_THAT(text, HasSubstr("vivarium_time_to_first_token_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("vivarium_queue_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("vivarium_slots 8"));
  metrics_.SetEngine(nullptr);
}

}  // namespace
}  // namespace vivarium::server
