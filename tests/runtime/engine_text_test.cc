// Text of a stream: the bundled tokenizer over a fake model that follows a script.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/text/text_stream.h"
#include "engine/text/tokenizer.h"
#include "tests/runtime/engine_fixture.h"
#include "tests/support/test_environment.h"

namespace vivarium::engine {
namespace {

class EngineText : public ::testing::Test {
 protected:
  EngineText() {
    auto loaded = Tokenizer::Load(test::RootDir() + "/models/vivarium-stories");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    const int64_t num_ids = tokenizer_->vocab_size();
    test_ = std::make_unique<TestEngine>(
        EngineOptions{},
        testing::FakeModel::Options{
            .vocab_size = num_ids, .padded_vocab_size = num_ids + 8, .eos_token_ids = {0}},
        tokenizer_.get());
  }

  std::vector<int32_t> Encode(const std::string& text) {
    return *tokenizer_->Encode(text, {.parse_special = true, .add_bos = false});
  }

  // A request whose outputs are `script`: the token at index i of the thread is script[i - 1].
  EngineRequest Follow(std::vector<int32_t> script) {
    test_->model.edit_logits = [script](uint64_t num_tokens, std::vector<float>* logits) {
      if (num_tokens <= script.size()) (*logits)[script[num_tokens - 1]] = 100.0f;
    };
    EngineRequest request = MakeRequest({100}, static_cast<uint32_t>(script.size()));
    request.sampling.temperature = 0.0f;
    request.stop.ignore_eos = false;
    request.save.at_end = true;
    return request;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TestEngine> test_;
};

TEST_F(EngineText, DeltasJoinToTheText) {
  const std::string text = "Once upon a time there was a little snake who lived in a glass house.";
  const auto record = test_->Run(Follow(Encode(text)));
  EXPECT_EQ(record->text(), text);
  EXPECT_EQ(record->finished->reason, FinishReason::kLength);
}

TEST_F(EngineText, AStopStringEndsTheTextBeforeItAndIsInTheState) {
  const std::vector<int32_t> script =
      Encode("The cat sat. STOP here and more text that nobody reads");
  EngineRequest request = Follow(script);
  request.stop.stop_strings = {"never", "STOP here"};
  const auto record = test_->Run(std::move(request));
  EXPECT_EQ(record->text(), "The cat sat. ");
  EXPECT_EQ(record->finished->reason, FinishReason::kStop);
  EXPECT_EQ(record->finished->stop, "STOP here");
  EXPECT_FALSE(record->finished->stop_token_id.has_value());
  EXPECT_LT(record->tokens.size(), script.size());
  const StateSnapshot& state = *record->finished->state;
  EXPECT_EQ(state.pending_token, script[record->tokens.size() - 1]) << "the stop's last token";
  EXPECT_EQ(state.position, record->tokens.size());
}

TEST_F(EngineText, HeldBackTextComesOutAtTheEnd) {
  EngineRequest request = Follow(Encode("The cat sat. STO"));
  request.stop.stop_strings = {"STOP"};
  const auto record = test_->Run(std::move(request));
  EXPECT_EQ(record->text(), "The cat sat. STO");
  EXPECT_EQ(record->finished->flushed_text, "STO");
  EXPECT_EQ(record->finished->stop, "");
}

TEST_F(EngineText, EndOfSequenceGivesNoText) {
  std::vector<int32_t> script = Encode("The end.");
  script.push_back(0);
  script.push_back(script[0]);
  const auto record = test_->Run(Follow(script));
  EXPECT_EQ(record->text(), "The end.");
  EXPECT_EQ(record->finished->stop_token_id, 0);
  EXPECT_EQ(record->tokens.back().text, "");
  EXPECT_EQ(record->tokens.size(), script.size() - 1);
}

// A character cut by a pause is completed after it; new input leaves it cut.
TEST_F(EngineText, APauseWithinACharacter) {
  const std::string text = "a \xF0\x9F\x90\x8D b";
  const std::vector<int32_t> script = Encode(text);
  ASSERT_GE(script.size(), 6u) << "the snake should be in several tokens";
  for (uint32_t cut = 1; cut < script.size(); ++cut) {
    EngineRequest first = Follow(script);
    first.max_tokens = cut;
    first.save.every_tokens = 1;
    const auto head = test_->Run(std::move(first));
    ASSERT_LE(head->finished->state->text_tail.size(), 3u);
    EXPECT_EQ(head->snapshots.back()->text_tail, head->finished->state->text_tail);
    EngineRequest rest = Follow(script);
    rest.prompt.clear();
    rest.source = std::make_unique<StateSnapshot>(CopySnapshot(*head->finished->state));
    rest.max_tokens = static_cast<uint32_t>(script.size()) - cut;
    EXPECT_EQ(head->text() + test_->Run(std::move(rest))->text(), text) << "cut at " << cut;

    EngineRequest fresh = Follow(script);
    fresh.prompt = {200};
    fresh.max_tokens = 0;
    fresh.source = std::make_unique<StateSnapshot>(CopySnapshot(*head->finished->state));
    EXPECT_EQ(test_->Run(std::move(fresh))->finished->state->text_tail, "");
  }
}

TEST_F(EngineText, ReadingNothingKeepsTheCutCharacter) {
  EngineRequest request = Follow(Encode("\xF0\x9F\x90\x8D"));
  request.max_tokens = 2;
  auto head = test_->Run(std::move(request));
  ASSERT_FALSE(head->finished->state->text_tail.empty());
  EngineRequest nothing;
  const std::string tail = head->finished->state->text_tail;
  nothing.source = std::move(head->finished->state);
  nothing.save.at_end = true;
  EXPECT_EQ(test_->Run(std::move(nothing))->finished->state->text_tail, tail);
}

TEST_F(EngineText, RefusesMalformedStopsAndTails) {
  EngineRequest request = MakeRequest({100}, 1);
  request.stop.stop_strings.assign(kMaxStopStrings, "x");
  EXPECT_TRUE(test_->Run(CopyRequest(request))->finished->status.ok());
  request.stop.stop_strings.push_back("x");
  EXPECT_EQ(test_->Refusal(std::move(request)).code(), absl::StatusCode::kInvalidArgument);
  request = MakeRequest({100}, 1);
  request.save.at_end = true;
  auto record = test_->Run(std::move(request));
  request = MakeRequest({}, 1);
  request.source = std::move(record->finished->state);
  request.source->text_tail = "abcd";
  EXPECT_EQ(test_->Refusal(std::move(request)).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace vivarium::engine
