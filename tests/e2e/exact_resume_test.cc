// Exact resume and independence, with real server processes: 200 tokens in one go are, bit for bit,
// 100 tokens + kill -9 + restart + resume + 100 tokens, whatever the number of threads and slots,
// the neighbours, and the way the prompt was cut.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/grpc_client.h"
#include "tests/e2e/neighbours.h"
#include "tests/support/server_process.h"

namespace vivarium {
namespace {

using ::vivarium::test::ServerProcess;

constexpr int kHalf = 100;
constexpr char kPrompt[] =
    "Once upon a time there was a little girl who lived in a small house near the big forest. "
    "Every morning she went to the well to fetch water, and every evening she told her cat what "
    "she had seen. One day the cat answered";

v1::GenerateRequest SampledRequest(int max_tokens) {
  v1::GenerateRequest request;
  request.set_text(kPrompt);
  request.set_max_tokens(max_tokens);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.9f);
  sampling.set_top_p(0.95f);
  sampling.set_repetition_penalty(1.1f);
  sampling.set_seed(20261124);
  sampling.set_logprobs(0);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_save()->set_at_end(true);
  return request;
}

v1::GenerateRequest ResumeRequest(const std::string& state_id, int max_tokens) {
  v1::GenerateRequest request;
  request.set_state_id(state_id);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_logprobs(0);  // the rest is inherited from the state
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_save()->set_at_end(true);
  return request;
}

struct ServerShape {
  int threads, max_slots, neighbours, prefill_chunk;
};

std::vector<std::string> Flags(const ServerShape& shape) {
  return {"--threads",       std::to_string(shape.threads),
          "--max-slots",     std::to_string(shape.max_slots),
          "--prefill-chunk", std::to_string(shape.prefill_chunk)};
}

// Both halves of the thread, with a kill -9 between them.
Generated GenerateAcrossKill(const ServerShape& shape) {
  auto server = ServerProcess::Start({.args = Flags(shape)});
  EXPECT_TRUE(server.ok()) << server.status();
  Generated first;
  {
    const Neighbours neighbours((*server)->address(), shape.neighbours);
    first = GrpcClient((*server)->address()).Generate(SampledRequest(kHalf));
  }
  EXPECT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_TRUE(first.finished && first.finished->has_state());
  (*server)->KillHard();
  EXPECT_TRUE((*server)->Restart().ok());

  const std::string& id = first.finished->state().id();
  Generated second;
  {
    const Neighbours neighbours((*server)->address(), shape.neighbours);
    second = GrpcClient((*server)->address()).Generate(ResumeRequest(id, kHalf));
  }
  EXPECT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_EQ(second.started->restored_tokens(), first.finished->state().position());
  first.text += second.text;
  first.finished = second.finished;
  first.token_ids.insert(first.token_ids.end(), second.token_ids.begin(), second.token_ids.end());
  first.logprob_bits.insert(first.logprob_bits.end(), second.logprob_bits.begin(),
                            second.logprob_bits.end());
  return first;
}

const Generated& InOneGo() {
  static const auto* const kResult = [] {
    auto server = ServerProcess::Start({.args = Flags({1, 8, 0, 4096})});
    EXPECT_TRUE(server.ok()) << server.status();
    return new Generated(GrpcClient((*server)->address()).Generate(SampledRequest(2 * kHalf)));
  }();
  return *kResult;
}

class ExactResume : public ::testing::TestWithParam<ServerShape> {};

TEST_P(ExactResume, AcrossKillEqualsInOneGoBitForBit) {
  const Generated& whole = InOneGo();
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  ASSERT_EQ(whole.token_ids.size(), 2u * kHalf);
  ASSERT_EQ(whole.logprob_bits.size(), 2u * kHalf);
  const Generated halves = GenerateAcrossKill(GetParam());
  EXPECT_EQ(halves.token_ids, whole.token_ids);
  EXPECT_EQ(halves.logprob_bits, whole.logprob_bits);
  EXPECT_EQ(halves.text, whole.text);
  EXPECT_EQ(halves.finished->state().position(), whole.finished->state().position());
  EXPECT_EQ(halves.finished->state().pending_token(), whole.finished->state().pending_token());
}

std::vector<ServerShape> Shapes() {
  std::vector<ServerShape> shapes;
  for (const int threads : {1, 2}) {
    for (const int max_slots : {1, 8}) {
      for (const int neighbours : {1, 16}) {
        for (const int prefill_chunk : {1, 7, 64, 4096}) {
          shapes.push_back({threads, max_slots, neighbours, prefill_chunk});
        }
      }
    }
  }
  return shapes;
}

std::string ShapeName(const ::testing::TestParamInfo<ServerShape>& info) {
  const ServerShape& shape = info.param;
  return "threads" + std::to_string(shape.threads) + "_slots" + std::to_string(shape.max_slots) +
         "_neighbours" + std::to_string(shape.neighbours) + "_chunk" +
         std::to_string(shape.prefill_chunk);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ExactResume, ::testing::ValuesIn(Shapes()), ShapeName);

// "No recomputation", from the engine's own counters: a resumed thread feeds its pending token and
// what it samples, nothing else.
TEST(NoRecomputation, TheEngineCountsOnlyNewTokens) {
  auto server = ServerProcess::Start({});
  ASSERT_TRUE(server.ok()) << server.status();
  const Generated first = GrpcClient((*server)->address()).Generate(SampledRequest(kHalf));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  (*server)->KillHard();
  ASSERT_TRUE((*server)->Restart().ok());

  GrpcClient client((*server)->address());
  ASSERT_EQ(client.Stats().consumed_tokens(), 0u);
  const Generated second = client.Generate(ResumeRequest(first.finished->state().id(), kHalf));
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  const v1::Stats stats = client.Stats();
  EXPECT_EQ(stats.consumed_tokens(), static_cast<uint64_t>(kHalf));  // pending + 99 sampled
  EXPECT_EQ(stats.prefill_tokens(), 1u);
  EXPECT_EQ(stats.output_tokens(), static_cast<uint64_t>(kHalf));
  EXPECT_EQ(stats.restored_tokens(), first.finished->state().position());
  EXPECT_EQ(second.finished->usage().prefill_tokens(), 1u);
  EXPECT_EQ(second.finished->usage().restored_tokens(), first.finished->state().position());
}

// A fork: two different continuations of one state leave each other, and the state, alone.
TEST(Forks, DontDisturbEachOther) {
  auto server = ServerProcess::Start({});
  ASSERT_TRUE(server.ok()) << server.status();
  GrpcClient client((*server)->address());
  const Generated parent = client.Generate(SampledRequest(kHalf));
  ASSERT_TRUE(parent.status.ok()) << parent.status.error_message();
  const std::string id = parent.finished->state().id();

  const Generated before = client.Generate(ResumeRequest(id, 50));
  std::vector<std::thread> forks;
  for (int i = 0; i < 4; ++i) {
    forks.emplace_back([&, i] {
      v1::GenerateRequest request = ResumeRequest(id, 40);
      request.set_text(" and then, for the " + std::to_string(i) + ". time,");
      const Generated fork = GrpcClient((*server)->address()).Generate(request);
      EXPECT_TRUE(fork.status.ok()) << fork.status.error_message();
      EXPECT_EQ(fork.finished->state().parent_id(), id);
    });
  }
  const Generated during = client.Generate(ResumeRequest(id, 50));
  for (std::thread& fork : forks) fork.join();
  const Generated after = client.Generate(ResumeRequest(id, 50));
  EXPECT_EQ(before.logprob_bits, during.logprob_bits);
  EXPECT_EQ(before.logprob_bits, after.logprob_bits);
  EXPECT_EQ(before.token_ids, after.token_ids);
}

}  // namespace
}  // namespace vivarium
