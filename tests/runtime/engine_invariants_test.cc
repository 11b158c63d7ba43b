// What a stream computes depends on its request alone; and a pause changes nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/kernels/reference_sampler.h"
#include "tests/runtime/engine_fixture.h"

namespace vivarium::engine {
namespace {

EngineRequest RichRequest(uint64_t seed, int prompt_size = 150, uint32_t max_tokens = 40) {
  EngineRequest request = MakeRequest(Tokens(prompt_size, static_cast<int>(seed)), max_tokens);
  request.sampling = RichSampling(seed);
  request.num_top_logprobs = 3;
  request.save.at_end = true;
  return request;
}

void ExpectSameBits(const Recorded& a, const Recorded& b) {
  EXPECT_EQ(a.token_ids(), b.token_ids());
  ASSERT_EQ(a.tokens.size(), b.tokens.size());
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    EXPECT_EQ(a.tokens[i].logprob->logprob, b.tokens[i].logprob->logprob);
    for (size_t n = 0; n < a.tokens[i].top_logprobs.size(); ++n) {
      EXPECT_EQ(a.tokens[i].top_logprobs[n].logprob, b.tokens[i].top_logprobs[n].logprob);
    }
  }
  const StateSnapshot& x = *a.finished->state;
  const StateSnapshot& y = *b.finished->state;
  EXPECT_EQ(x.position, y.position);
  EXPECT_EQ(x.pending_token, y.pending_token);
  EXPECT_EQ(x.recent_tokens, y.recent_tokens);
  ASSERT_EQ(x.slot.size(), y.slot.size());
  EXPECT_EQ(std::memcmp(x.slot.data(), y.slot.data(), x.slot.size()), 0);
}

std::unique_ptr<StateSnapshot> Copy(const std::unique_ptr<StateSnapshot>& state) {
  return std::make_unique<StateSnapshot>(CopySnapshot(*state));
}

TEST(EngineInvariants, ChunksSlotsAndNeighboursChangeNothing) {
  const auto alone = TestEngine({.max_slots = 1}).Run(RichRequest(1));
  EXPECT_EQ(alone->tokens.size(), 40u);
  for (const int32_t chunk : {1, 7, 64, 512}) {
    for (const int32_t slots : {1, 8}) {
      for (const int num_neighbours : {0, 1, 16}) {
        TestEngine test({.max_slots = slots, .prefill_chunk_tokens = chunk});
        std::vector<TestEngine::Submitted> neighbours;
        for (int i = 0; i < num_neighbours; ++i) {
          neighbours.push_back(test.Submit(RichRequest(100 + i, 10 + 9 * i, 30)));
        }
        ExpectSameBits(*test.Run(RichRequest(1)), *alone);
        for (auto& neighbour : neighbours) neighbour.record->done.WaitForNotification();
        EXPECT_EQ(test.engine->Stats().used_slots, 0);
      }
    }
  }
}

// With and without crossing the end of the penalties' window.
TEST(EngineInvariants, APauseChangesNothing) {
  for (const int prompt_size : {1, 5, 1000, 1500}) {
    TestEngine test;
    const auto whole = test.Run(RichRequest(7, prompt_size, 60));
    auto half = test.Run(RichRequest(7, prompt_size, 30));
    EngineRequest rest = RichRequest(7, 0, 30);
    rest.prompt.clear();
    rest.source = std::move(half->finished->state);
    const auto resumed = test.Run(std::move(rest));
    std::vector<int32_t> joined = half->token_ids();
    for (const int32_t id : resumed->token_ids()) joined.push_back(id);
    EXPECT_EQ(joined, whole->token_ids());
    EXPECT_EQ(resumed->finished->restored_tokens, static_cast<uint64_t>(prompt_size) + 29);
    EXPECT_EQ(resumed->finished->prefill_tokens, 1u) << "the pending token and nothing else";
    const StateSnapshot& a = *resumed->finished->state;
    const StateSnapshot& b = *whole->finished->state;
    EXPECT_EQ(std::memcmp(a.slot.data(), b.slot.data(), a.slot.size()), 0);
    EXPECT_EQ(a.position, b.position);
    EXPECT_EQ(a.recent_tokens, b.recent_tokens);
  }
}

TEST(EngineInvariants, EverySnapshotOnTheWayResumesToTheSame) {
  TestEngine test({.prefill_chunk_tokens = 9});
  EngineRequest request = RichRequest(3, 50, 40);
  request.save = {.at_end = true, .at_prompt_end = true, .every_tokens = 8};
  const auto whole = test.Run(CopyRequest(request));
  // 8, 16 .. 48 in the prompt, 49 at its end, 56 .. 88 among the outputs.
  ASSERT_EQ(whole->snapshots.size(), 12u);
  std::vector<int32_t> thread = request.prompt;
  for (const int32_t id : whole->token_ids()) thread.push_back(id);
  for (const auto& snapshot : whole->snapshots) {
    EngineRequest rest;
    rest.source = Copy(snapshot);
    const uint64_t begin = snapshot->position + 1;  // after the pending token
    if (begin < 50) rest.prompt.assign(thread.begin() + begin, thread.begin() + 50);
    rest.sampling = request.sampling;
    rest.stop.ignore_eos = true;
    rest.max_tokens = static_cast<uint32_t>(thread.size() - std::max<uint64_t>(begin, 50));
    const auto resumed = test.Run(std::move(rest));
    EXPECT_EQ(resumed->token_ids(),
              std::vector<int32_t>(thread.begin() + std::max<uint64_t>(begin, 50), thread.end()))
        << "from " << snapshot->position;
  }
}

TEST(EngineInvariants, ForksDontDisturbEachOther) {
  TestEngine test({.max_slots = 3});
  const auto trunk = test.Run(RichRequest(5, 20, 10));
  const auto fork = [&](uint64_t seed) {
    EngineRequest request = RichRequest(seed, 3, 25);
    request.source = Copy(trunk->finished->state);
    return request;
  };
  std::vector<TestEngine::Submitted> together;
  for (uint64_t seed = 0; seed < 12; ++seed) together.push_back(test.Submit(fork(seed)));
  std::set<std::vector<int32_t>> outcomes;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    together[seed].record->done.WaitForNotification();
    ExpectSameBits(*together[seed].record, *TestEngine().Run(fork(seed)));
    outcomes.insert(together[seed].record->token_ids());
  }
  EXPECT_EQ(outcomes.size(), 12u);
}

TEST(EngineInvariants, PreReadingADocumentEqualsReadingItAtOnce) {
  TestEngine test;
  const auto at_once = test.Run(RichRequest(6, 100, 20));
  EngineRequest read = RichRequest(6, 100, 0);
  auto document = test.Run(CopyRequest(read));
  EXPECT_EQ(document->finished->reason, FinishReason::kLength);
  EXPECT_EQ(document->finished->position, 99u) << "all but the pending token";
  EXPECT_TRUE(document->tokens.empty());
  EngineRequest answer = RichRequest(6, 0, 20);
  answer.prompt.clear();
  answer.source = std::move(document->finished->state);
  EXPECT_EQ(test.Run(std::move(answer))->token_ids(), at_once->token_ids());
}

TEST(EngineInvariants, NothingToConsumeGivesTheSourceBack) {
  TestEngine test;
  auto first = test.Run(RichRequest(6, 10, 5));
  EngineRequest request;
  request.source = Copy(first->finished->state);
  request.save = {.at_end = true, .at_prompt_end = true};
  const auto record = test.Run(std::move(request));
  const uint64_t consumed = test.engine->Stats().consumed_tokens;
  EXPECT_EQ(consumed, first->finished->position);
  ASSERT_EQ(record->snapshots.size(), 1u);
  for (const StateSnapshot* state : {record->snapshots[0].get(), record->finished->state.get()}) {
    EXPECT_EQ(state->position, first->finished->state->position);
    EXPECT_EQ(state->pending_token, first->finished->state->pending_token);
    EXPECT_EQ(state->recent_tokens, first->finished->state->recent_tokens);
    EXPECT_TRUE(state->transcript.empty());
  }
}

TEST(EngineInvariants, ScoresAreTheModelsWhateverTheChunks) {
  const std::vector<int32_t> ids = Tokens(70);
  std::vector<float> exact;
  TestEngine reference;
  for (size_t i = 1; i < ids.size(); ++i) {
    const auto logits =
        reference.model.LogitsAfter(std::vector<int32_t>(ids.begin(), ids.begin() + i));
    exact.push_back(kernels::ReferenceLogSoftmax(std::span(logits).first(61))(ids[i]));
  }
  const auto logprobs = [](const Recorded& record) {
    std::vector<float> values;
    for (const TokenLogprob& score : record.finished->scores) values.push_back(score.logprob);
    return values;
  };
  for (const int32_t logit_rows : {1, 3, 512}) {
    for (const int32_t chunk : {1, 7, 512}) {
      TestEngine test({.max_slots = 1, .prefill_chunk_tokens = chunk},
                      {.max_logit_rows = logit_rows});
      EngineRequest request = MakeRequest(ids, 0);
      request.score = true;
      EXPECT_EQ(logprobs(*test.Run(std::move(request))), exact);
      // The first 30 from nothing, the other 40 on top of their state: the same scores.
      EngineRequest head = MakeRequest({ids.begin(), ids.begin() + 30}, 0);
      head.save.at_end = true;
      EngineRequest tail = MakeRequest({ids.begin() + 30, ids.end()}, 0);
      tail.source = std::move(test.Run(std::move(head))->finished->state);
      tail.score = true;
      const auto record = test.Run(std::move(tail));
      EXPECT_EQ(logprobs(*record), std::vector<float>(exact.begin() + 29, exact.end()));
      EXPECT_EQ(record->finished->scores[0].token_id, ids[30]);
    }
  }
}

TEST(EngineInvariants, LogprobsAreOfTheRawLogits) {
  TestEngine test;
  EngineRequest request = MakeRequest({5, 6}, 1);
  request.sampling = RichSampling(1);
  request.num_top_logprobs = kMaxTopLogprobs;
  const auto record = test.Run(std::move(request));
  const auto logits = test.model.LogitsAfter({5, 6});
  const kernels::ReferenceLogSoftmax softmax{std::span(logits).first(61)};
  const TokenEvent& event = record->tokens[0];
  EXPECT_EQ(event.logprob->token_id, event.token_id);
  EXPECT_EQ(event.logprob->logprob, softmax(event.token_id));
  ASSERT_EQ(event.top_logprobs.size(), 20u);
  for (size_t i = 1; i < 20; ++i) {
    EXPECT_GE(event.top_logprobs[i - 1].logprob, event.top_logprobs[i].logprob);
  }
}

}  // namespace
}  // namespace vivarium::engine
