// Many sessions, each paused in the middle of its text, then the server is killed (-9) and started
// anew: every one goes on token for token, with the bits of its log-probabilities (on the CPU), as
// if nothing had been. VIVARIUM_SESSIONS sets how many.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/grpc_client.h"
#include "tests/support/server_process.h"

namespace vivarium {
namespace {

using ::vivarium::test::ServerProcess;

constexpr int kHalf = 12;
constexpr int kNumClients = 8;

// Different prompts, lengths and sampling for each.
v1::GenerateRequest RequestOf(int index, int max_tokens) {
  v1::GenerateRequest request;
  std::string text = "Once upon a time there was a child named N" + std::to_string(index);
  for (int i = 0; i < index % 5; ++i) text += ", who had a friend called M" + std::to_string(i);
  request.set_text(text);
  request.set_max_tokens(max_tokens);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(index % 3 == 0 ? 0.0f : 0.8f);
  sampling.set_seed(static_cast<uint64_t>(1000 + index));
  sampling.set_logprobs(0);
  request.mutable_stops()->set_ignore_eos(true);
  return request;
}

std::string NameOf(int index) { return "session-" + std::to_string(index); }

// `act(client, index)` for all indices, from several clients at once.
template <typename Act>
void ForEach(const std::string& address, int count, Act act) {
  std::atomic<int> next{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kNumClients; ++i) {
    clients.emplace_back([&] {
      GrpcClient client(address);
      for (int index = 0; (index = next++) < count;) act(client, index);
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST(ManySessions, GoOnAfterAKillBitForBit) {
  const char* wanted = std::getenv("VIVARIUM_SESSIONS");
  const int num_sessions = wanted != nullptr ? std::atoi(wanted) : 50;
  auto server = ServerProcess::Start({.args = {"--max-slots", "4"}});
  ASSERT_TRUE(server.ok()) << server.status();
  std::vector<Generated> whole(static_cast<size_t>(num_sessions)), first(whole.size()),
      second(whole.size());
  ForEach((*server)->address(), num_sessions, [&](GrpcClient& client, int index) {
    v1::GenerateRequest request = RequestOf(index, 2 * kHalf);
    request.set_prefix_reuse(false);  // each thread stands for itself
    whole[static_cast<size_t>(index)] = client.Generate(request);
    request.set_max_tokens(kHalf);
    request.set_session(NameOf(index));
    request.mutable_save()->set_at_end(true);
    first[static_cast<size_t>(index)] = client.Generate(request);
  });
  (*server)->KillHard();
  ASSERT_TRUE((*server)->Restart().ok());
  ForEach((*server)->address(), num_sessions, [&](GrpcClient& client, int index) {
    v1::GenerateRequest request;
    request.set_session(NameOf(index));
    request.set_max_tokens(kHalf);
    request.mutable_sampling()->set_logprobs(0);  // the rest is inherited
    request.mutable_stops()->set_ignore_eos(true);
    request.mutable_save()->set_at_end(true);
    second[static_cast<size_t>(index)] = client.Generate(request);
  });
  for (size_t i = 0; i < whole.size(); ++i) {
    SCOPED_TRACE("session " + std::to_string(i));
    for (const Generated* part : {&whole[i], &first[i], &second[i]}) {
      ASSERT_TRUE(part->status.ok()) << part->status.error_message();
    }
    ASSERT_EQ(whole[i].token_ids.size(), 2u * kHalf);
    EXPECT_EQ(second[i].started->restored_tokens(), first[i].finished->state().position());
    std::vector<int32_t> ids = first[i].token_ids;
    ids.insert(ids.end(), second[i].token_ids.begin(), second[i].token_ids.end());
    EXPECT_EQ(ids, whole[i].token_ids);
    std::vector<uint32_t> bits = first[i].logprob_bits;
    bits.insert(bits.end(), second[i].logprob_bits.begin(), second[i].logprob_bits.end());
    EXPECT_EQ(bits, whole[i].logprob_bits);
  }
  std::cout << num_sessions << " sessions went on after a kill, bit for bit\n";
}

}  // namespace
}  // namespace vivarium
