// The engine's invariants with real arithmetic: the golden tiny models and the bundled one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/runtime/real_engine.h"
#include "tests/support/temp_dir.h"

namespace vivarium::engine {
namespace {

void ExpectSameEvents(const std::vector<TokenEvent>& a, std::span<const TokenEvent> b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].token_id, b[i].token_id) << i;
    EXPECT_EQ(a[i].logprob->logprob, b[i].logprob->logprob) << i;
    EXPECT_EQ(a[i].top_logprobs[1].token_id, b[i].top_logprobs[1].token_id) << i;
    EXPECT_EQ(a[i].top_logprobs[1].logprob, b[i].top_logprobs[1].logprob) << i;
  }
}

void ExpectSameState(const StateSnapshot& a, const StateSnapshot& b) {
  EXPECT_EQ(a.position, b.position);
  EXPECT_EQ(a.pending_token, b.pending_token);
  EXPECT_EQ(a.recent_tokens, b.recent_tokens);
  EXPECT_EQ(a.text_tail, b.text_tail);
  ASSERT_EQ(a.slot.size(), b.slot.size());
  EXPECT_EQ(std::memcmp(a.slot.data(), b.slot.data(), a.slot.size()), 0) << "the state's bits";
}

TEST(RealModel, GreedyContinuationsAreGolden) {
  for (const char* name : {"tiny-mamba", "tiny-mamba-bf16", "tiny-mamba-statespaces-naming"}) {
    RealEngine real(kGoldens + name, Options(2, 7));
    const auto golden = nlohmann::json::parse(test::ReadFile(kGoldens + name + "/golden.json"));
    for (const auto& sequence : golden.at("sequences")) {
      const auto greedy = sequence.at("greedy").get<std::vector<int32_t>>();
      EngineRequest request = MakeRequest(sequence.at("tokens").get<std::vector<int32_t>>(),
                                          static_cast<uint32_t>(greedy.size()), 0);
      request.sampling = {.temperature = 0.0f};
      EXPECT_EQ(real.Run(std::move(request))->token_ids(), greedy) << name;
    }
  }
}

struct Setting {
  std::string directory;
  WeightFormat weights;
};

class RealModelInvariants : public ::testing::TestWithParam<Setting> {
 protected:
  std::unique_ptr<RealEngine> Make(int32_t max_slots, int32_t chunk, int num_threads = 1) {
    test::HarnessOptions harness_options;
    harness_options.weights = GetParam().weights;
    harness_options.num_threads = num_threads;
    return std::make_unique<RealEngine>(GetParam().directory, Options(max_slots, chunk),
                                        harness_options);
  }
};

TEST_P(RealModelInvariants, ChunksSlotsThreadsAndNeighboursDontChangeABit) {
  const auto request = [] { return MakeRequest(SomeTokens(130, 1), 24, 11); };
  const auto alone = Make(1, 256)->Run(request());
  for (const int num_threads : {1, 2}) {
    for (const int32_t max_slots : {1, 8}) {
      for (const int32_t chunk : {1, 7, 64, 256}) {
        const auto real = Make(max_slots, chunk, num_threads);
        const int num_neighbours = chunk == 1 ? 1 : 16;
        std::vector<std::shared_ptr<Recorded>> neighbours;
        for (int i = 0; i < num_neighbours; ++i) {
          neighbours.push_back(real->Submit(MakeRequest(SomeTokens(3 + 5 * i, i), 20, i)));
        }
        const auto record = real->Run(request());
        ExpectSameEvents(alone->tokens, record->tokens);
        ExpectSameState(*alone->finished->state, *record->finished->state);
      }
    }
  }
}

TEST_P(RealModelInvariants, APauseDoesntChangeABit) {
  const auto whole = Make(2, 64)->Run(MakeRequest(SomeTokens(90, 2), 50, 12));
  const auto head = Make(2, 64)->Run(MakeRequest(SomeTokens(90, 2), 25, 12));
  const auto real = Make(3, 7);
  EngineRequest rest = MakeRequest({}, 25, 12);
  rest.source = std::make_unique<StateSnapshot>(CopySnapshot(*head->finished->state));
  const auto tail = real->Run(std::move(rest));
  ExpectSameEvents(head->tokens, std::span(whole->tokens).first(25));
  ExpectSameEvents(tail->tokens, std::span(whole->tokens).last(25));
  ExpectSameState(*tail->finished->state, *whole->finished->state);
  EXPECT_EQ(real->engine().Stats().consumed_tokens, 25u) << "no recomputation";
  EXPECT_EQ(real->engine().Stats().restored_tokens, 114u);
}

TEST_P(RealModelInvariants, SnapshotsOnTheWayAreTheStatesOfAPause) {
  EngineRequest request = MakeRequest(SomeTokens(50, 3), 20, 13);
  request.save = {.at_end = true, .at_prompt_end = true, .every_tokens = 16};
  const auto whole = Make(2, 64)->Run(std::move(request));
  ASSERT_EQ(whole->snapshots.size(), 5u);  // 16, 32, 48, 49 (the prompt's end), 64
  const auto real = Make(4, 64);
  std::vector<int32_t> thread = SomeTokens(50, 3);
  for (const int32_t id : whole->token_ids()) thread.push_back(id);
  for (const auto& snapshot : whole->snapshots) {
    EngineRequest rest = MakeRequest({}, 0, 13);
    rest.source = std::make_unique<StateSnapshot>(CopySnapshot(*snapshot));
    const size_t next = snapshot->position + 1;
    if (next < 50) rest.prompt.assign(thread.begin() + next, thread.begin() + 50);
    rest.max_tokens = static_cast<uint32_t>(thread.size() - std::max<size_t>(next, 50));
    const auto record = real->Run(std::move(rest));
    ExpectSameEvents(record->tokens, std::span(whole->tokens).last(record->tokens.size()));
    ExpectSameState(*record->finished->state, *whole->finished->state);
  }
}

TEST_P(RealModelInvariants, ForksDontDisturbEachOther) {
  const auto trunk = Make(1, 64)->Run(MakeRequest(SomeTokens(40, 4), 10, 14));
  const auto fork = [&](uint64_t seed) {
    EngineRequest request = MakeRequest(SomeTokens(3, static_cast<int>(seed)), 20, seed);
    request.source = std::make_unique<StateSnapshot>(CopySnapshot(*trunk->finished->state));
    return request;
  };
  const auto real = Make(3, 64);
  std::vector<std::shared_ptr<Recorded>> together;
  for (uint64_t seed = 0; seed < 6; ++seed) together.push_back(real->Submit(fork(seed)));
  const auto apart = Make(1, 64);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    together[seed]->done.WaitForNotification();
    const auto alone = apart->Run(fork(seed));
    ExpectSameEvents(together[seed]->tokens, alone->tokens);
    ExpectSameState(*together[seed]->finished->state, *alone->finished->state);
  }
}

TEST_P(RealModelInvariants, ScoresAreTheLogprobsOfGeneration) {
  const auto generated = Make(2, 64)->Run(MakeRequest(SomeTokens(20, 5), 30, 15));
  EngineRequest request = MakeRequest(SomeTokens(20, 5), 0, 0);
  const auto source = Make(2, 64)->Run(CopyRequest(request));
  request = MakeRequest(generated->token_ids(), 0, 0);
  request.source = std::make_unique<StateSnapshot>(CopySnapshot(*source->finished->state));
  request.score = true;
  const auto scored = Make(2, 11)->Run(std::move(request));
  ASSERT_EQ(scored->finished->scores.size(), 30u);
  for (size_t i = 0; i < 30; ++i) {
    EXPECT_EQ(scored->finished->scores[i].logprob, generated->tokens[i].logprob->logprob);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RealModelInvariants,
                         ::testing::Values(Setting{kGoldens + "tiny-mamba", WeightFormat::kF32},
                                           Setting{kGoldens + "tiny-mamba-bf16",
                                                   WeightFormat::kAuto},
                                           Setting{kBundled, WeightFormat::kAuto}));

// A state of the other kind resumes: widened exactly, or rounded; then it is one of the new kind.
TEST(RealModel, StatesOfTheOtherDTypeResume) {
  const std::string directory = kGoldens + "tiny-mamba";
  RealEngine wide(directory, Options(2, 64));
  RealEngine narrow(directory, Options(2, 64), {.state_dtype = kernels::DType::kBF16});
  const auto to = [](const StateSnapshot& state) {
    EngineRequest request = MakeRequest({}, 12, 5);
    request.source = std::make_unique<StateSnapshot>(CopySnapshot(state));
    return request;
  };
  const auto first = narrow.Run(MakeRequest(SomeTokens(40, 1), 5, 5));
  const StateSnapshot& bf16_state = *first->finished->state;
  const auto on_wide = wide.Run(to(bf16_state));
  ASSERT_TRUE(on_wide->finished.has_value());
  EXPECT_EQ(on_wide->tokens.size(), 12u);
  // Back on bf16, nothing was lost on the way: the widened state rounds to itself.
  EngineRequest only_save = to(bf16_state);
  only_save.max_tokens = 0;
  const auto widened = wide.Run(std::move(only_save));
  const StateSnapshot& f32_state = *widened->finished->state;
  EXPECT_EQ(f32_state.position, bf16_state.position);
  EXPECT_GT(f32_state.layout.slot_bytes, bf16_state.layout.slot_bytes);
  const auto there_and_back = narrow.Run(to(f32_state));
  const auto direct = narrow.Run(to(bf16_state));
  ExpectSameEvents(there_and_back->tokens, std::span(direct->tokens));
  ExpectSameState(*there_and_back->finished->state, *direct->finished->state);
}

TEST(RealModel, TheBundledModelTellsAStory) {
  RealEngine real(kBundled, Options(1, 64));
  EngineRequest request;
  request.prompt = *real.tokenizer().Encode("Once upon a time", {});
  request.max_tokens = 40;
  request.sampling.temperature = 0.0f;
  const auto record = real.Run(std::move(request));
  EXPECT_EQ(record->text(), real.tokenizer().Decode(record->token_ids(), /*skip_special=*/true));
  EXPECT_THAT(record->text(), ::testing::HasSubstr("there was a"));
}

}  // namespace
}  // namespace vivarium::engine
