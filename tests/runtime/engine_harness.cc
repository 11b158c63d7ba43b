#include "tests/runtime/engine_harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/kernels/reference_sampler.h"

namespace vivarium::engine {

std::vector<int32_t> Recorded::token_ids() const {
  std::vector<int32_t> ids;
  for (const TokenEvent& event : tokens) ids.push_back(event.token_id);
  return ids;
}

std::string Recorded::text() const {
  std::string all;
  for (const TokenEvent& event : tokens) all += event.text;
  return finished ? all + finished->flushed_text : all;
}

RecordingSink::~RecordingSink() {
  record_->sink_destroyed = true;
  record_->done.Notify();
}

void RecordingSink::OnStarted(const StartedInfo& info) {
  record_->in_order &= !record_->started && !record_->finished;
  record_->started = info;
}

void RecordingSink::OnToken(TokenEvent event) {
  record_->in_order &= record_->started && !record_->finished;
  record_->tokens.push_back(std::move(event));
}

bool RecordingSink::AcceptsSnapshot(uint64_t position) {
  record_->asked_positions.push_back(position);
  return !record_->accepts || record_->accepts(position);
}

void RecordingSink::OnSnapshot(std::unique_ptr<StateSnapshot> snapshot) {
  record_->in_order &= record_->started && !record_->finished;
  record_->snapshots.push_back(std::move(snapshot));
}

bool RecordingSink::AcceptsPromptState(uint64_t position) {
  record_->asked_prompt_positions.push_back(position);
  return !record_->accepts_prompt || record_->accepts_prompt(position);
}

void RecordingSink::OnPromptState(std::unique_ptr<StateSnapshot> state) {
  record_->in_order &= record_->started && !record_->finished;
  record_->prompt_states.push_back(std::move(state));
}

void RecordingSink::OnFinished(FinishInfo info) {
  ++record_->num_finished;
  record_->finished = std::move(info);
}

std::vector<int32_t> IdsOf(std::span<const TranscriptToken> tokens) {
  std::vector<int32_t> ids;
  for (const TranscriptToken& token : tokens) ids.push_back(token.id);
  return ids;
}

std::vector<int32_t> Expected::output_ids() const {
  return IdsOf(std::span<const TranscriptToken>(thread).subspan(num_given));
}

// The token after `thread` by the plain sampler.
int32_t ReferenceToken(kernels::ReferenceSampler* sampler, std::span<const float> logits,
                       const SamplingParams& params, std::span<const TranscriptToken> thread,
                       std::span<const int32_t> banned_ids) {
  kernels::SampleRow row{};
  row.seed = params.seed;
  row.position = thread.size();
  row.temperature = params.temperature;
  row.top_k = params.top_k;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  std::vector<kernels::RecentToken> recent;
  for (const TranscriptToken& token :
       thread.last(std::min<size_t>(thread.size(), kRecentTokenWindow))) {
    recent.push_back({token.id, token.is_output});
  }
  const kernels::SampledToken token =
      sampler->Sample({logits, row, params.logit_bias, recent, banned_ids});
  EXPECT_EQ(token.status, kernels::SampleStatus::kOk);
  return token.token_id;
}

Expected Predict(const testing::FakeModel& model, const Thread& source_thread,
                 const EngineRequest& request) {
  Expected expected;
  expected.thread = source_thread;
  expected.has_source = !source_thread.empty();
  expected.source_position = source_thread.empty() ? 0 : source_thread.size() - 1;
  for (const int32_t id : request.prompt) expected.thread.push_back({id, false});
  expected.num_given = expected.thread.size();
  expected.reason = FinishReason::kLength;
  std::vector<int32_t> stop_ids = request.stop.stop_token_ids;
  if (!request.stop.ignore_eos) {
    for (const int32_t id : model.config().eos_token_ids) stop_ids.push_back(id);
  }
  const int64_t num_ids = model.config().vocab_size;
  kernels::ReferenceSampler sampler(num_ids);
  for (uint32_t i = 0; i < request.max_tokens; ++i) {
    const std::vector<float> logits = model.LogitsAfter(IdsOf(expected.thread));
    const std::span<const int32_t> banned_ids =
        i < request.min_tokens ? std::span<const int32_t>(stop_ids) : std::span<const int32_t>();
    const int32_t id = ReferenceToken(&sampler, std::span(logits).first(num_ids), request.sampling,
                                      expected.thread, banned_ids);
    expected.thread.push_back({id, true});
    if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
      expected.reason = FinishReason::kStop;
      expected.stop_token_id = id;
      break;
    }
  }
  return expected;
}

void ExpectState(const testing::FakeModel& model, const StateSnapshot& state, const Thread& thread,
                 std::optional<uint64_t> parent_position) {
  ASSERT_LT(state.position, thread.size());
  const Thread consumed(thread.begin(), thread.begin() + state.position);
  const Thread with_pending(thread.begin(), thread.begin() + state.position + 1);
  EXPECT_EQ(state.identity, FakeIdentity());
  EXPECT_EQ(state.layout, model.state_layout());
  const std::vector<std::byte> bytes = model.StateAfter(IdsOf(consumed));
  ASSERT_EQ(state.slot.size(), bytes.size());
  EXPECT_EQ(std::memcmp(state.slot.data(), bytes.data(), bytes.size()), 0)
      << "not the state of these " << state.position << " tokens";
  EXPECT_EQ(state.pending_token, thread[state.position].id);
  const size_t window = std::min<size_t>(with_pending.size(), kRecentTokenWindow);
  EXPECT_EQ(state.recent_tokens, Thread(with_pending.end() - window, with_pending.end()));
  const size_t begin = parent_position ? *parent_position + 1 : 0;
  EXPECT_EQ(state.transcript, Thread(with_pending.begin() + begin, with_pending.end()));
}

void ExpectStream(const testing::FakeModel& model, const Recorded& record, const Expected& expected,
                  const SavePolicy& save) {
  EXPECT_EQ(record.num_finished, 1);
  EXPECT_TRUE(record.in_order);
  ASSERT_TRUE(record.finished);
  const FinishInfo& info = *record.finished;
  const bool is_complete =
      info.reason == FinishReason::kStop || info.reason == FinishReason::kLength;
  std::vector<int32_t> outputs = expected.output_ids();
  if (is_complete) {
    EXPECT_EQ(info.reason, expected.reason);
    EXPECT_EQ(info.stop_token_id, expected.stop_token_id);
  } else {
    ASSERT_LE(record.tokens.size(), outputs.size());
    outputs.resize(record.tokens.size());
  }
  EXPECT_EQ(record.token_ids(), outputs);
  EXPECT_EQ(info.output_tokens, outputs.size());

  std::optional<uint64_t> parent;
  if (expected.has_source) parent = expected.source_position;
  EXPECT_EQ(info.restored_tokens, expected.source_position);
  if (record.started) {
    EXPECT_EQ(record.started->restored_tokens, expected.source_position);
  }

  std::vector<uint64_t> due;
  for (uint64_t p = expected.source_position; p <= info.position; ++p) {
    const bool at_prompt_end = save.at_prompt_end && p + 1 == expected.num_given;
    const bool at_multiple =
        save.every_tokens > 0 && p > expected.source_position && p % save.every_tokens == 0;
    if (record.started && (at_prompt_end || at_multiple)) due.push_back(p);
  }
  ASSERT_EQ(record.snapshots.size(), due.size());
  for (size_t i = 0; i < due.size(); ++i) {
    EXPECT_EQ(record.snapshots[i]->position, due[i]);
    ExpectState(model, *record.snapshots[i], expected.thread, parent);
    parent = due[i];
  }
  EXPECT_EQ(info.state != nullptr,
            save.at_end && record.started.has_value() && info.reason != FinishReason::kError);
  if (info.state != nullptr) {
    EXPECT_EQ(info.state->position, info.position);
    ExpectState(model, *info.state, expected.thread, parent);
  }
  if (is_complete) {
    EXPECT_EQ(info.position + 1, expected.num_given + outputs.size());
  }
}

EngineRequest CopyRequest(const EngineRequest& request) {
  EngineRequest copy;
  if (request.source != nullptr) {
    copy.source = std::make_unique<StateSnapshot>(CopySnapshot(*request.source));
  }
  copy.prompt = request.prompt;
  copy.score = request.score;
  copy.sampling = request.sampling;
  copy.stop = request.stop;
  copy.max_tokens = request.max_tokens;
  copy.min_tokens = request.min_tokens;
  copy.num_top_logprobs = request.num_top_logprobs;
  copy.save = request.save;
  copy.priority = request.priority;
  copy.deadline = request.deadline;
  return copy;
}

ModelIdentity FakeIdentity() {
  return {.fingerprint = "fake-model", .tokenizer_hash = "", .numerics_id = "fake-v1-wf32"};
}

}  // namespace vivarium::engine
