// Snapshots inside a prefill chunk: no chunk is cut for them while there are slots, and they are
// the snapshots that a cut would give.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/runtime/engine_fixture.h"

namespace vivarium::engine {
namespace {

constexpr uint32_t kEvery = 7;

struct Outcome {
  std::shared_ptr<Recorded> record;
  uint64_t steps = 0;
};

Outcome RunStream(int32_t snapshot_slots, int32_t chunk, bool score) {
  TestEngine engine(
      {.max_slots = 1, .snapshot_slots = snapshot_slots, .prefill_chunk_tokens = chunk},
      {.max_logit_rows = 128, .max_slots = 1 + snapshot_slots});
  EngineRequest request = MakeRequest(Tokens(50), score ? 0 : 3);
  request.score = score;
  request.save = {.at_end = true, .at_prompt_end = true, .every_tokens = kEvery};
  Outcome outcome;
  outcome.record = engine.Run(std::move(request));
  outcome.steps = engine.engine->Stats().steps;
  return outcome;
}

void ExpectSameStates(const Recorded& a, const Recorded& b) {
  ASSERT_EQ(a.snapshots.size(), b.snapshots.size());
  for (size_t i = 0; i < a.snapshots.size(); ++i) {
    const StateSnapshot& left = *a.snapshots[i];
    const StateSnapshot& right = *b.snapshots[i];
    EXPECT_EQ(left.position, right.position) << i;
    EXPECT_EQ(left.pending_token, right.pending_token) << i;
    EXPECT_EQ(left.recent_tokens, right.recent_tokens) << i;
    EXPECT_EQ(left.transcript, right.transcript) << i;
    ASSERT_EQ(left.slot.size(), right.slot.size()) << i;
    EXPECT_EQ(std::memcmp(left.slot.data(), right.slot.data(), left.slot.size()), 0) << i;
  }
}

TEST(Snapshots, ChunksAreNotCutWhileThereAreSlots) {
  for (const bool score : {false, true}) {
    const Outcome cut = RunStream(0, 64, score);
    // At 7, 14, .. 49; the prompt's last token has index 49.
    ASSERT_EQ(cut.record->snapshots.size(), 7u);
    const uint64_t later_steps = score ? 0 : 2;  // of the outputs
    EXPECT_EQ(cut.steps, (score ? 7 : 8) + later_steps);
    for (const int32_t slots : {1, 2, 3, 6, 7, 8}) {
      const Outcome whole = RunStream(slots, 64, score);
      ExpectSameStates(*whole.record, *cut.record);
      EXPECT_EQ(whole.record->token_ids(), cut.record->token_ids());
      const uint64_t pieces = score ? 7 : 8;  // a step has slots for so many but its last
      const auto per_step = static_cast<uint64_t>(slots) + 1;
      EXPECT_EQ(whole.steps, (pieces + per_step - 1) / per_step + later_steps) << slots;
    }
  }
}

TEST(Snapshots, AnyChunkGivesTheSame) {
  const Outcome expected = RunStream(0, 1, false);
  for (const int32_t chunk : {1, 6, 7, 8, 20, 49, 50}) {
    for (const int32_t slots : {0, 1, 4}) {
      ExpectSameStates(*RunStream(slots, chunk, false).record, *expected.record);
    }
  }
}

// What the sink does not accept is not taken, and leaves no gap in the transcripts.
TEST(Snapshots, AreSkippedWhereTheSinkSaysSo) {
  for (const int32_t snapshot_slots : {0, 1, 8}) {
    for (const int32_t chunk : {1, 10, 64}) {
      SCOPED_TRACE(::testing::Message() << snapshot_slots << " slots, chunks of " << chunk);
      TestEngine engine(
          {.max_slots = 1, .snapshot_slots = snapshot_slots, .prefill_chunk_tokens = chunk},
          {.max_logit_rows = 128, .max_slots = 1 + snapshot_slots});
      EngineRequest request = MakeRequest(Tokens(50), 20);  // the prompt's end is at 49 = 7 * 7
      request.save = {.at_end = true, .at_prompt_end = true, .every_tokens = kEvery};
      auto record = std::make_shared<Recorded>();
      record->accepts = [](uint64_t position) { return position % 3 == 0; };
      ASSERT_TRUE(
          engine.engine->Submit(std::move(request), std::make_unique<RecordingSink>(record)).ok());
      record->done.WaitForNotification();
      EXPECT_EQ(record->asked_positions, (std::vector<uint64_t>{7, 14, 21, 28, 35, 42, 56, 63}));
      std::vector<uint64_t> positions;
      uint64_t num_tokens = 0;
      for (const auto& snapshot : record->snapshots) {
        positions.push_back(snapshot->position);
        num_tokens += snapshot->transcript.size();
        EXPECT_EQ(num_tokens, snapshot->position + 1);
      }
      EXPECT_EQ(positions, (std::vector<uint64_t>{21, 42, 49, 63}));
      EXPECT_EQ(record->finished->skipped_snapshots, 5u);
      ASSERT_NE(record->finished->state, nullptr);
      EXPECT_EQ(record->finished->state->position, 69u);
    }
  }
}

TEST(Snapshots, SkippedOnesCutNoChunk) {
  TestEngine engine({.max_slots = 1, .snapshot_slots = 0, .prefill_chunk_tokens = 64},
                    {.max_logit_rows = 128, .max_slots = 1});
  EngineRequest request = MakeRequest(Tokens(50), 1);
  request.save = {.every_tokens = kEvery};
  auto record = std::make_shared<Recorded>();
  record->accepts = [](uint64_t) { return false; };
  ASSERT_TRUE(
      engine.engine->Submit(std::move(request), std::make_unique<RecordingSink>(record)).ok());
  record->done.WaitForNotification();
  EXPECT_EQ(engine.engine->Stats().steps, 1u);
  EXPECT_TRUE(record->snapshots.empty());
  EXPECT_EQ(record->finished->skipped_snapshots, 7u);
}

}  // namespace
}  // namespace vivarium::engine
