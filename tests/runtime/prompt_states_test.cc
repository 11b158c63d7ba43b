// States at chosen positions of a prompt: beside the stream's chain, which they leave as it is, and
// good for other prompts with the same beginning.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/runtime/engine_fixture.h"

namespace vivarium::engine {
namespace {

using Positions = std::vector<uint64_t>;

constexpr int kPromptTokens = 50;

std::shared_ptr<Recorded> RunStream(int32_t snapshot_slots, int32_t chunk, SavePolicy save,
                                    std::function<bool(uint64_t)> accepts_prompt = {}) {
  TestEngine engine(
      {.max_slots = 1, .snapshot_slots = snapshot_slots, .prefill_chunk_tokens = chunk},
      {.max_logit_rows = 128, .max_slots = 1 + snapshot_slots});
  EngineRequest request = MakeRequest(Tokens(kPromptTokens), 5);
  request.sampling = RichSampling(3);
  request.save = std::move(save);
  auto record = std::make_shared<Recorded>();
  record->accepts_prompt = std::move(accepts_prompt);
  const auto id =
      engine.engine->Submit(std::move(request), std::make_unique<RecordingSink>(record));
  EXPECT_TRUE(id.ok()) << id.status();
  record->done.WaitForNotification();
  return record;
}

Positions PositionsOf(const std::vector<std::unique_ptr<StateSnapshot>>& states) {
  Positions positions;
  for (const auto& state : states) positions.push_back(state->position);
  return positions;
}

void ExpectSameBytes(const StateSnapshot& a, const StateSnapshot& b) {
  ASSERT_EQ(a.slot.size(), b.slot.size());
  EXPECT_EQ(std::memcmp(a.slot.data(), b.slot.data(), a.slot.size()), 0) << a.position;
}

TEST(PromptStates, AreThoseOfASnapshotThereAndLeaveTheChainAsItIs) {
  const auto all = RunStream(0, 64, {.at_end = true, .every_tokens = 1});
  const auto chain = RunStream(0, 64, {.at_end = true, .at_prompt_end = true, .every_tokens = 20});
  for (const int32_t slots : {0, 1, 2, 8}) {
    for (const int32_t chunk : {1, 7, 20, 64}) {
      SCOPED_TRACE(::testing::Message() << slots << " slots, chunks of " << chunk);
      const auto record = RunStream(slots, chunk,
                                    {.at_end = true,
                                     .at_prompt_end = true,
                                     .every_tokens = 20,
                                     .prompt_positions = {1, 7, 8, 21, 39, 48}});
      EXPECT_TRUE(record->in_order);
      EXPECT_EQ(PositionsOf(record->prompt_states), (Positions{1, 7, 8, 21, 39, 48}));
      for (const auto& state : record->prompt_states) {
        const StateSnapshot& expected = *all->snapshots[state->position - 1];
        ASSERT_EQ(state->position, expected.position);
        ExpectSameBytes(*state, expected);
        EXPECT_EQ(state->pending_token, expected.pending_token);
        EXPECT_EQ(state->recent_tokens, expected.recent_tokens);
        EXPECT_TRUE(state->transcript.empty());
      }
      EXPECT_EQ(record->token_ids(), chain->token_ids());
      ASSERT_EQ(PositionsOf(record->snapshots), PositionsOf(chain->snapshots));
      for (size_t i = 0; i < chain->snapshots.size(); ++i) {
        EXPECT_EQ(record->snapshots[i]->transcript, chain->snapshots[i]->transcript) << i;
        ExpectSameBytes(*record->snapshots[i], *chain->snapshots[i]);
      }
      EXPECT_EQ(record->finished->state->transcript, chain->finished->state->transcript);
      EXPECT_EQ(record->finished->skipped_snapshots, 0u);
    }
  }
}

TEST(PromptStates, WhereTheChainHasOneThatOneIsEnough) {
  const auto record = RunStream(
      1, 64, {.at_prompt_end = true, .every_tokens = 20, .prompt_positions = {20, 30, 40, 49}});
  EXPECT_EQ(PositionsOf(record->snapshots), (Positions{20, 40, 49}));
  EXPECT_EQ(PositionsOf(record->prompt_states), (Positions{30}));
  EXPECT_EQ(record->asked_prompt_positions, (Positions{30}));
}

TEST(PromptStates, ThePromptsEndIsOneToo) {
  for (const int32_t chunk : {1, 49, 50, 64}) {
    const auto record = RunStream(1, chunk, {.prompt_positions = {49}});
    ASSERT_EQ(PositionsOf(record->prompt_states), (Positions{49}));
    EXPECT_EQ(record->prompt_states[0]->pending_token, Tokens(kPromptTokens).back());
  }
}

TEST(PromptStates, RefusedOnesAreAskedForOnceAndNotCounted) {
  for (const int32_t slots : {0, 1, 4}) {
    for (const int32_t chunk : {1, 10, 64}) {
      const auto record = RunStream(slots, chunk, {.prompt_positions = {10, 11, 30}},
                                    [](uint64_t position) { return position == 11; });
      EXPECT_EQ(record->asked_prompt_positions, (Positions{10, 11, 30}));
      EXPECT_EQ(PositionsOf(record->prompt_states), (Positions{11}));
      EXPECT_EQ(record->finished->skipped_snapshots, 0u);
    }
  }
}

TEST(PromptStates, PositionsAreChecked) {
  TestEngine engine({.max_slots = 1});
  const auto refusal = [&](Positions positions, std::unique_ptr<StateSnapshot> source = nullptr) {
    EngineRequest request = MakeRequest(Tokens(kPromptTokens), 1);
    request.save.prompt_positions = std::move(positions);
    request.source = std::move(source);
    return engine.Refusal(std::move(request)).ToString();
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(refusal({0}), HasSubstr("prompt_positions[0] is 0, must be in (0, 49]"));
  EXPECT_THAT(refusal({50}), HasSubstr("prompt_positions[0] is 50, must be in (0, 49]"));
  EXPECT_THAT(refusal({5, 5}), HasSubstr("prompt_positions[1] is 5, must be in (5, 49]"));
  EXPECT_THAT(refusal({5, 4}), HasSubstr("prompt_positions[1] is 4"));
  Positions many(kMaxPromptPositions + 1);
  for (size_t i = 0; i < many.size(); ++i) many[i] = i + 1;
  EXPECT_THAT(refusal(many), HasSubstr("has 17 positions, at most 16"));
  many.pop_back();
  EngineRequest bounded = MakeRequest(Tokens(kPromptTokens), 1);
  bounded.save = {.at_end = true, .prompt_positions = many};
  auto record = engine.Run(std::move(bounded));
  EXPECT_EQ(PositionsOf(record->prompt_states), many);
  auto source = std::make_unique<StateSnapshot>(CopySnapshot(*record->finished->state));
  ASSERT_EQ(source->position, 50u);
  EXPECT_THAT(refusal({50}, std::make_unique<StateSnapshot>(CopySnapshot(*source))),
              HasSubstr("is 50, must be in (50, 100]"));
  EXPECT_THAT(refusal({101}, std::move(source)), HasSubstr("is 101, must be in (50, 100]"));
}

// What makes a state good for another prompt: its slot's bytes, the other's next token pending, and
// the other's own recent tokens.
TEST(PromptStates, AnotherPromptWithTheSameBeginningGoesOnFromThem) {
  const auto first = RunStream(1, 64, {.prompt_positions = {30, 49}});
  ASSERT_EQ(PositionsOf(first->prompt_states), (Positions{30, 49}));
  for (const auto& state : first->prompt_states) {
    std::vector<int32_t> prompt = Tokens(kPromptTokens);
    if (state->position == 30) {
      prompt.resize(30);
      for (const int32_t id : Tokens(12, 5)) prompt.push_back(id);
    }
    TestEngine engine({.max_slots = 1});
    EngineRequest whole = MakeRequest(prompt, 8);
    whole.sampling = RichSampling(9);
    whole.save = {.at_end = true};
    const auto expected = engine.Run(std::move(whole));
    const auto begin = prompt.begin() + static_cast<std::ptrdiff_t>(state->position);
    EngineRequest rest = MakeRequest({begin + 1, prompt.end()}, 8);
    rest.sampling = RichSampling(9);
    rest.save = {.at_end = true};
    rest.source = std::make_unique<StateSnapshot>(CopySnapshot(*state));
    rest.source->pending_token = *begin;
    rest.source->recent_tokens.back().id = *begin;
    const auto found = engine.Run(std::move(rest));
    EXPECT_EQ(found->token_ids(), expected->token_ids());
    EXPECT_EQ(found->started->restored_tokens, state->position);
    EXPECT_EQ(found->finished->prefill_tokens, prompt.size() - state->position);
    ExpectSameBytes(*found->finished->state, *expected->finished->state);
    EXPECT_EQ(found->finished->state->recent_tokens, expected->finished->state->recent_tokens);
  }
}

}  // namespace
}  // namespace vivarium::engine
