// Prefix reuse with a real server process over the bundled model: with a stored prefix or without,
// across kill -9 and restart, a prompt gives the same tokens and the same log-probabilities, bit
// for bit, and stores the same states.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/grpc_client.h"
#include "tests/support/server_process.h"

namespace vivarium {
namespace {

using ::vivarium::test::ServerProcess;

constexpr char kShared[] =
    "Once upon a time there was a little girl who lived in a small house near the big forest. "
    "Every morning she went to the well to fetch water, and every evening she told her cat what "
    "she had seen. One day the cat";
constexpr int kOutputTokens = 40;

std::string Repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text + " ";
  return all;
}

// Sampling in which the window of recent tokens matters.
v1::GenerateRequest RequestOf(const std::string& text, bool reuses) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_max_tokens(kOutputTokens);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.9f);
  sampling.set_repetition_penalty(1.3f);
  sampling.set_presence_penalty(0.4f);
  sampling.set_frequency_penalty(0.2f);
  sampling.set_seed(4);
  sampling.set_logprobs(0);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_save()->set_at_end(true);
  request.mutable_save()->set_at_prompt_end(true);
  request.mutable_ttl()->set_seconds(3600);
  if (!reuses) request.set_prefix_reuse(false);
  return request;
}

v1::State WithTranscript(GrpcClient& client, const std::string& id) {
  v1::GetStateRequest request;
  request.set_id(id);
  request.set_with_transcript(true);
  v1::State state;
  grpc::ClientContext context;
  EXPECT_TRUE(client.states->GetState(&context, request, &state).ok());
  return state;
}

std::string Slot(GrpcClient& client, const std::string& id) {
  v1::ExportStateRequest request;
  request.set_id(id);
  grpc::ClientContext context;
  const auto reader = client.states->ExportState(&context, request);
  v1::ExportStateResponse piece;
  std::string file;
  while (reader->Read(&piece)) file += piece.data();
  EXPECT_TRUE(reader->Finish().ok());
  uint64_t manifest_bytes = 0;  // of the export file: statestore/README.md
  std::memcpy(&manifest_bytes, file.data() + 24, sizeof(manifest_bytes));
  return file.substr(64 + manifest_bytes, file.size() - 64 - manifest_bytes - 8);
}

void Delete(GrpcClient& client, const std::string& id) {
  v1::DeleteStateRequest request;
  request.set_id(id);
  google::protobuf::Empty nothing;
  grpc::ClientContext context;
  EXPECT_TRUE(client.states->DeleteState(&context, request, &nothing).ok());
}

void ExpectSame(GrpcClient& client, const Generated& found, const Generated& expected) {
  ASSERT_TRUE(found.status.ok()) << found.status.error_message();
  EXPECT_EQ(found.token_ids, expected.token_ids);
  EXPECT_EQ(found.logprob_bits, expected.logprob_bits);
  EXPECT_EQ(found.text, expected.text);
  ASSERT_EQ(found.saved.size(), expected.saved.size());
  const auto compare = [&](const v1::State& a, const v1::State& b) {
    EXPECT_EQ(a.position(), b.position());
    EXPECT_EQ(a.pending_token(), b.pending_token());
    EXPECT_EQ(a.parent_id().empty(), b.parent_id().empty());
    const v1::State a_whole = WithTranscript(client, a.id());
    const v1::State b_whole = WithTranscript(client, b.id());
    ASSERT_EQ(a_whole.transcript_size(), b_whole.transcript_size());
    for (int i = 0; i < a_whole.transcript_size(); ++i) {
      EXPECT_EQ(a_whole.transcript(i).SerializeAsString(),
                b_whole.transcript(i).SerializeAsString());
    }
    EXPECT_EQ(Slot(client, a.id()), Slot(client, b.id()));
  };
  for (size_t i = 0; i < found.saved.size(); ++i) compare(found.saved[i], expected.saved[i]);
  compare(found.finished->state(), expected.finished->state());
}

// The states that a stream saved would be reused themselves.
void Forget(GrpcClient& client, const Generated& generated) {
  Delete(client, generated.finished->state().id());
  for (const v1::State& state : generated.saved) Delete(client, state.id());
}

// They are stored beside the streams: the calls don't wait for them.
void AwaitAutomaticState(GrpcClient& client) {
  for (int i = 0; i < 1000; ++i) {
    v1::ListStatesRequest request;
    (*request.mutable_labels())["vivarium.made-for"] = "prefix-reuse";
    v1::ListStatesResponse response;
    grpc::ClientContext context;
    EXPECT_TRUE(client.states->ListStates(&context, request, &response).ok());
    if (response.states_size() > 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL() << "no automatic state";
}

TEST(PrefixReuse, GivesTheSameBitsAsComputingAcrossRestarts) {
  auto server = ServerProcess::Start({.args = {"--threads", "2"}});
  ASSERT_TRUE(server.ok()) << server.status();
  auto client = std::make_unique<GrpcClient>((*server)->address());
  // The second one is longer than the window of recent tokens.
  for (const std::string& shared : {std::string(kShared), Repeated(kShared, 24)}) {
    const std::string text = shared + " smiled and said";
    const Generated expected = client->Generate(RequestOf(text, /*reuses=*/false));
    ASSERT_TRUE(expected.status.ok()) << expected.status.error_message();
    EXPECT_EQ(expected.started->restored_tokens(), 0u);
    // Two prompts that part after what all share.
    for (const char* end : {" jumped", " slept"}) {
      v1::GenerateRequest other = RequestOf(shared + end, /*reuses=*/true);
      other.set_max_tokens(1);
      other.clear_save();
      EXPECT_TRUE(client->Generate(other).status.ok());
    }
    AwaitAutomaticState(*client);
    const std::string end_id = expected.finished->state().id();
    const std::string end_slot = Slot(*client, end_id);
    (*server)->KillHard();
    ASSERT_TRUE((*server)->Restart().ok());
    client = std::make_unique<GrpcClient>((*server)->address());
    EXPECT_EQ(Slot(*client, end_id), end_slot);

    const uint64_t before = client->Stats().consumed_tokens();
    const Generated reused = client->Generate(RequestOf(text, /*reuses=*/true));
    ASSERT_TRUE(reused.status.ok()) << reused.status.error_message();
    // The expected stream's prompt-end state is the longest prefix: but one token is left.
    const uint64_t num_prompt = expected.started->prefill_tokens();
    EXPECT_EQ(reused.started->restored_tokens(), num_prompt - 1)
        << reused.started->reuse_explanation();
    EXPECT_EQ(reused.started->source_state_id(), expected.saved[0].id());
    ExpectSame(*client, reused, expected);
    EXPECT_EQ(client->Stats().consumed_tokens() - before, 1u + kOutputTokens - 1);

    // Without these states: from where the two other prompts parted.
    v1::GenerateRequest request = RequestOf(text, /*reuses=*/true);
    Forget(*client, reused);
    for (const v1::State& state : expected.saved) Delete(*client, state.id());
    const Generated branched = client->Generate(request);
    ASSERT_TRUE(branched.status.ok()) << branched.status.error_message();
    EXPECT_GE(branched.started->restored_tokens(), 32u) << branched.started->reuse_explanation();
    EXPECT_LT(branched.started->restored_tokens(), num_prompt - 1);
    EXPECT_EQ(branched.started->restored_tokens() + branched.started->prefill_tokens(), num_prompt);
    EXPECT_EQ(branched.token_ids, expected.token_ids);
    EXPECT_EQ(branched.logprob_bits, expected.logprob_bits);
    EXPECT_EQ(Slot(*client, branched.finished->state().id()), end_slot);
    // Whoever reads the thread finds all of it, also without the state that it began from.
    Delete(*client, branched.started->source_state_id());
    const v1::State whole = WithTranscript(*client, branched.saved[0].id());
    int num_tokens = 0;
    for (const auto& entry : whole.transcript()) num_tokens += entry.token_ids_size();
    EXPECT_EQ(num_tokens, static_cast<int>(num_prompt));
    EXPECT_TRUE(whole.parent_id().empty());
    Delete(*client, end_id);
  }
}

// Many at once, while the states that they reuse are stored and used: all the same.
TEST(PrefixReuse, ManyAtOnceAllGiveTheSame) {
  auto server = ServerProcess::Start({.args = {"--threads", "2", "--max-slots", "4"}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string text = std::string(kShared) + " smiled";
  v1::GenerateRequest request = RequestOf(text, /*reuses=*/false);
  request.clear_save();
  const Generated expected = GrpcClient((*server)->address()).Generate(request);
  request.clear_prefix_reuse();
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&, i] {
        v1::GenerateRequest own = request;
        if (i % 2 == 1) own.set_text(std::string(kShared) + " ran away " + std::to_string(i));
        const Generated found = GrpcClient((*server)->address()).Generate(own);
        ASSERT_TRUE(found.status.ok()) << found.status.error_message();
        if (i % 2 == 0) {
          EXPECT_EQ(found.logprob_bits, expected.logprob_bits);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  const Generated last = GrpcClient((*server)->address()).Generate(request);
  EXPECT_GT(last.started->restored_tokens(), 32u) << last.started->reuse_explanation();
  EXPECT_EQ(last.logprob_bits, expected.logprob_bits);
}

}  // namespace
}  // namespace vivarium
