// With real arithmetic: a resume from a slot that still has the state, from host memory after the
// slot was needed, and from bytes are the same bits.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/runtime/real_engine.h"

namespace vivarium::engine {
namespace {

#if defined(VIVARIUM_TEST_CUDA_ON_CPU)
const std::string kDevice = "cuda:0";
#else
const std::string kDevice = test::TestDevice();
#endif

void ExpectSameBits(const Recorded& a, const Recorded& b) {
  ASSERT_EQ(a.tokens.size(), b.tokens.size());
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    EXPECT_EQ(a.tokens[i].token_id, b.tokens[i].token_id) << i;
    EXPECT_EQ(a.tokens[i].logprob->logprob, b.tokens[i].logprob->logprob) << i;
  }
  const StateSnapshot& x = *a.finished->state;
  const StateSnapshot& y = *b.finished->state;
  EXPECT_EQ(x.position, y.position);
  EXPECT_EQ(x.pending_token, y.pending_token);
  EXPECT_EQ(x.transcript, y.transcript);
  ASSERT_EQ(x.slot.size(), y.slot.size());
  EXPECT_EQ(std::memcmp(x.slot.data(), y.slot.data(), x.slot.size()), 0) << "the state's bits";
}

// A resume of `from`, 12 tokens long.
EngineRequest Resume(const Recorded& from) {
  EngineRequest request = MakeRequest(SomeTokens(5, 9), 12, 21);
  request.source = std::make_unique<StateSnapshot>(CopySnapshot(*from.finished->state));
  return request;
}

EngineRequest ResumeHot(RealEngine& real, const Recorded& from) {
  EngineRequest request = Resume(from);
  request.hot = real.engine().LeaseHot("trunk");
  EXPECT_TRUE(request.hot);
  request.source->slot = StateBuffer();
  return request;
}

TEST(RealModelHot, TheNearestTierGivesTheSameBits) {
  EngineOptions options = Options(2, 16);
  options.snapshot_slots = 0;
  RealEngine real(kGoldens + "tiny-mamba-bf16", options,
                  {.weights = WeightFormat::kAuto, .device = kDevice});
  const auto trunk = real.Run(MakeRequest(SomeTokens(40, 2), 15, 3));
  real.engine().NameHot(trunk->finished->hot_id, "trunk");
  const auto from_bytes = real.Run(Resume(*trunk));
  ASSERT_EQ(from_bytes->finished->reason, FinishReason::kLength);

  const auto copied = real.Run(ResumeHot(real, *trunk));
  ExpectSameBits(*copied, *from_bytes);
  EXPECT_EQ(copied->finished->restored_tokens, trunk->finished->position);

  // Its slot is needed while a stream is about to go on from it.
  EngineRequest waits = ResumeHot(real, *trunk);
  std::vector<std::shared_ptr<Recorded>> others;
  for (int i = 0; i < 8; ++i) others.push_back(real.Submit(MakeRequest(SomeTokens(20, i), 20, i)));
  for (const auto& other : others) other->done.WaitForNotification();
  EXPECT_GT(real.engine().Stats().hot_evictions, 0u);
  ExpectSameBits(*real.Run(std::move(waits)), *from_bytes);

  // And the slot itself, when nobody is to need it again.
  const auto again = real.Run(MakeRequest(SomeTokens(40, 2), 15, 3));
  real.engine().NameHot(again->finished->hot_id, "trunk");
  EngineRequest last = ResumeHot(real, *again);
  last.keeps_hot = false;
  ExpectSameBits(*real.Run(std::move(last)), *from_bytes);
  EXPECT_FALSE(real.engine().LeaseHot("trunk"));
  EXPECT_EQ(real.engine().Stats().used_slots, 0);
}

TEST(RealModelHot, ManyForksOfOneHotState) {
  RealEngine real(kGoldens + "tiny-mamba-bf16", Options(3, 16),
                  {.weights = WeightFormat::kAuto, .device = kDevice});
  const auto trunk = real.Run(MakeRequest(SomeTokens(40, 2), 15, 3));
  real.engine().NameHot(trunk->finished->hot_id, "trunk");
  std::vector<std::shared_ptr<Recorded>> forks;
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 5; ++i) requests.push_back(ResumeHot(real, *trunk));
  for (EngineRequest& request : requests) forks.push_back(real.Submit(std::move(request)));
  for (const auto& fork : forks) fork->done.WaitForNotification();
  const auto from_bytes = real.Run(Resume(*trunk));
  for (const auto& fork : forks) ExpectSameBits(*fork, *from_bytes);
  EXPECT_EQ(real.engine().Stats().hot_resumes, 5u);
}

}  // namespace
}  // namespace vivarium::engine
