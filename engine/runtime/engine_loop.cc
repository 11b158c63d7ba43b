#include "engine/runtime/engine_loop.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <optional>
#include <utility>

namespace vivarium::engine {
namespace {

SchedulerLimits LimitsOf(const EngineOptions& options, const Model& model) {
  return {.max_slots = options.max_slots,
          .max_live_streams = options.max_live_streams,
          .max_num_batched_tokens = options.max_num_batched_tokens,
          .max_logit_rows = model.max_logit_rows(),
          .prefill_chunk_tokens = options.prefill_chunk_tokens,
          .prefill_tokens_beside_decode = options.prefill_tokens_beside_decode,
          .time_slice_tokens = options.time_slice_tokens};
}

}  // namespace

int32_t SpareSlots(const kernels::Backend& backend, int32_t max_slots) {
  return backend.copies_overlap() ? std::min(max_slots, kMaxSpareSlots) : 0;
}

EngineLoop::EngineLoop(Model* model, ModelIdentity identity, std::unique_ptr<StatePool> pool,
                       std::unique_ptr<TokenSampler> sampler, const EngineOptions& options)
    : model_(model),
      identity_(std::move(identity)),
      pool_(std::move(pool)),
      hot_(std::make_shared<HotStates>()),
      transfers_(model->backend(), pool_.get()),
      options_(options),
      scheduler_(LimitsOf(options, *model)),
      sampler_(std::move(sampler)) {
  stats_.max_slots = options_.max_slots;
  stats_.slot_bytes = pool_->slot_bytes();
  stats_.pool_bytes = pool_->pool_bytes();
}

EngineLoop::~EngineLoop() { transfers_.Drop(); }  // while the buffers are there

void EngineLoop::Add(std::unique_ptr<Sequence> sequence) {
  const StreamId id = sequence->id();
  scheduler_.Add(id, sequence->request().priority, sequence->request().deadline, sequence->Need());
  stats_.queued_tokens += static_cast<int64_t>(sequence->prefill_tokens());
  sequences_.emplace(id, std::move(sequence));
}

void EngineLoop::Finish(StreamId id, FinishReason reason) {
  const auto it = sequences_.find(id);
  if (it != sequences_.end()) FinishSequence(*it->second, {.reason = reason});
}

void EngineLoop::FinishAll(FinishReason reason) {
  std::vector<StreamId> ids;
  for (const auto& [id, sequence] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const StreamId id : ids) Finish(id, reason);
}

void EngineLoop::FinishExpired(absl::Time now) {
  for (const StreamId id : scheduler_.Expired(now)) Finish(id, FinishReason::kDeadline);
}

void EngineLoop::Step() {
  if (IsFaulty()) return;
  transfers_.Poll();
  JoinLoaded();
  StepPlan plan = scheduler_.Plan();
  for (const StreamId id : plan.swap_out) SwapOut(*sequences_.at(id));
  for (const StreamId id : plan.slot_in) {
    if (SlotIn(*sequences_.at(id))) continue;
    IsFaulty();  // it is: all streams end
    return;
  }
  JoinLoaded();
  HoldLoading(&plan);
  if (plan.runs.empty()) transfers_.WaitForOldest();
  float* const logits = Forward(&plan.runs);  // may shorten runs
  Sample(plan.runs, logits);
  if (IsFaulty()) {
    for (const SnapshotSlot& snapshot : snapshots_) pool_->Release(snapshot.slot);
    return;
  }
  int64_t row = 0;
  for (const PlannedRun& run : plan.runs) {
    row += Accept(*sequences_.at(run.id), run.num_tokens, row);
  }
}

bool EngineLoop::IsFaulty() {
  if (fault_.ok()) {
    const std::string fault = model_->backend()->fault();
    if (fault.empty()) return false;
    fault_ = DeviceFaultError(fault);
  }
  transfers_.Drop();
  for (const int32_t slot : hot_->Close()) pool_->Release(slot);
  for (Finished& finished : finished_) {
    if (std::exchange(finished.sequence->num_transfers, 0) == 0) continue;
    finished.info.reason = FinishReason::kError;
    finished.info.status = fault_;
    finished.info.state = nullptr;
  }
  std::vector<StreamId> ids;
  for (const auto& [id, sequence] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const StreamId id : ids) {
    Sequence& sequence = *sequences_.at(id);
    sequence.num_transfers = 0;
    sequence.is_loading = false;
    FinishSequence(sequence, {.reason = FinishReason::kError}, fault_);
  }
  return true;
}

StateTransfers::Done EngineLoop::Counted(Sequence& sequence, StateTransfers::Done done) {
  ++sequence.num_transfers;
  return [&sequence, done = std::move(done)] {
    --sequence.num_transfers;
    done();
  };
}

void EngineLoop::JoinLoaded() {
  for (const StreamId id : std::exchange(loaded_, {})) {
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) continue;
    it->second->is_loading = false;
    scheduler_.SetLoading(id, false);
  }
}

void EngineLoop::HoldLoading(StepPlan* plan) {
  std::erase_if(plan->runs, [this](const PlannedRun& run) {
    const bool is_loading = sequences_.at(run.id)->is_loading;
    if (is_loading) scheduler_.SetLoading(run.id, true);
    return is_loading;
  });
}

int32_t EngineLoop::NumLogitRows(const Sequence& sequence, int32_t num_tokens) const {
  const RunNeed need = sequence.Need();
  if (need.logits_every_row) return num_tokens;
  const bool reaches_end =
      sequence.position() + num_tokens >= sequence.source_position() + sequence.prefill_tokens();
  return sequence.request().max_tokens > 0 && reaches_end ? 1 : 0;
}

void EngineLoop::AddSegments(Sequence& sequence, PlannedRun* run) {
  const auto first_row = static_cast<int32_t>(token_ids_.size());
  const uint64_t first = sequence.position();
  const auto row_at = [&](uint64_t position) {
    return first_row + static_cast<int32_t>(position - first);
  };
  uint64_t end = first + static_cast<uint64_t>(run->num_tokens);
  uint64_t position = first;
  int32_t read_slot = sequence.slot;
  while (true) {
    const uint64_t next = sequence.NextSnapshot(position, end);
    if (next < end) MakeRoom();
    if (next < end && pool_->num_free() == 0) end = next;
    const int32_t write_slot = next < end ? pool_->Acquire() : sequence.slot;
    segments_.push_back({.token_begin = row_at(position),
                         .num_tokens = static_cast<int32_t>(next - position),
                         .read_slot = read_slot,
                         .write_slot = write_slot});
    if (next == end) break;
    snapshots_.push_back(
        {.id = run->id, .position = next, .slot = write_slot, .due = sequence.DueAt(next)});
    read_slot = kernels::kPreviousSegment;
    position = next;
  }
  run->num_tokens = static_cast<int32_t>(end - first);
}

float* EngineLoop::Forward(std::vector<PlannedRun>* runs) {
  token_ids_.clear();
  segments_.clear();
  logit_rows_.clear();
  snapshots_.clear();
  num_snapshots_taken_ = 0;
  for (PlannedRun& run : *runs) {
    if (run.num_tokens == 0) continue;
    Sequence& sequence = *sequences_.at(run.id);
    const int32_t begin = static_cast<int32_t>(token_ids_.size());
    AddSegments(sequence, &run);
    const int32_t num_tokens = run.num_tokens;
    for (int32_t i = 0; i < num_tokens; ++i) {
      token_ids_.push_back(sequence.TokenAt(sequence.position() + i).id);
    }
    const int32_t end = begin + num_tokens;
    for (int32_t row = end - NumLogitRows(sequence, num_tokens); row < end; ++row) {
      logit_rows_.push_back(row);
    }
  }
  if (token_ids_.empty()) return nullptr;
  ++stats_.steps;
  stats_.consumed_tokens += token_ids_.size();
  return model_->Forward(
      {.token_ids = token_ids_, .segments = segments_, .logit_rows = logit_rows_}, pool_->slots());
}

void EngineLoop::Sample(const std::vector<PlannedRun>& runs, float* logits) {
  sampler_->Begin(logits);
  for (const auto& [id, num_tokens] : runs) {
    const Sequence& sequence = *sequences_.at(id);
    const EngineRequest& request = sequence.request();
    const uint64_t end = sequence.position() + num_tokens;
    if (num_tokens == 0 || NumLogitRows(sequence, num_tokens) == 0) continue;
    if (request.score) {
      for (uint64_t scored = sequence.position() + 1; scored <= end; ++scored) {
        sampler_->AddScore(sequence.TokenAt(scored).id, scored);
      }
    } else {
      sampler_->AddSample({.params = request.sampling,
                           .recent = sequence.RecentUpTo(end - 1),
                           .banned_ids = sequence.banned_ids(),
                           .position = end,
                           .num_top_logprobs = request.num_top_logprobs});
    }
  }
  sampler_->Run();
}

int64_t EngineLoop::Accept(Sequence& sequence, int32_t num_tokens, int64_t row) {
  if (sequence.is_complete()) {  // had nothing to consume
    FinishSequence(sequence, {.reason = FinishReason::kLength});
    return 0;
  }
  const int32_t num_logit_rows = NumLogitRows(sequence, num_tokens);
  (sequence.in_prefill() ? stats_.prefill_tokens : stats_.decode_tokens) += num_tokens;
  absl::Status status;
  if (sequence.request().score) status = AcceptScores(sequence, num_tokens, row);
  const uint64_t end = sequence.position() + static_cast<uint64_t>(num_tokens);
  TakeSnapshots(sequence, /*emits=*/status.ok());
  sequence.Consume(end - sequence.position());
  std::optional<Ending> ending;
  if (status.ok() && sequence.needs_sample()) {
    auto sampled = AcceptSample(sequence, row);
    if (sampled.ok()) {
      ending = *std::move(sampled);
    } else {
      status = sampled.status();
    }
  }
  if (!status.ok()) {
    FinishSequence(sequence, {.reason = FinishReason::kError}, std::move(status));
    return num_logit_rows;
  }
  const DueState due = sequence.DueAt(sequence.position());
  if (due != DueState::kNone) EmitSnapshot(sequence, due);
  if (!ending && sequence.is_complete()) ending = Ending{.reason = FinishReason::kLength};
  if (ending) {
    FinishSequence(sequence, *std::move(ending));
  } else {
    scheduler_.SetNeed(sequence.id(), sequence.Need());
  }
  return num_logit_rows;
}

absl::Status EngineLoop::AcceptScores(Sequence& sequence, int32_t num_tokens, int64_t row) {
  for (const int64_t end = row + num_tokens; row < end; ++row) {
    const auto token_id = sampler_->Token(row);
    if (!token_id.ok()) return token_id.status();
    sequence.scores.push_back({*token_id, sampler_->Logprob(row)});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Ending>> EngineLoop::AcceptSample(Sequence& sequence, int64_t row) {
  const auto token_id = sampler_->Token(row);
  if (!token_id.ok()) return token_id.status();
  TokenEvent event;
  if (sequence.request().num_top_logprobs >= 0) {
    event.logprob = TokenLogprob{*token_id, sampler_->Logprob(row)};
    event.top_logprobs = sampler_->TopLogprobs(row);
  }
  if (sequence.output_tokens() == 0) sequence.first_sample_time = Sequence::Clock::now();
  std::optional<Ending> ending = sequence.Accept(*token_id, &event);
  ++stats_.output_tokens;
  sequence.sink().OnToken(std::move(event));
  return ending;
}

void EngineLoop::TakeSnapshots(Sequence& sequence, bool emits) {
  for (; num_snapshots_taken_ < snapshots_.size(); ++num_snapshots_taken_) {
    const SnapshotSlot& snapshot = snapshots_[num_snapshots_taken_];
    if (snapshot.id != sequence.id()) return;
    if (!emits) {
      pool_->Release(snapshot.slot);
      continue;
    }
    sequence.Consume(snapshot.position - sequence.position());
    const auto state = DescribeSnapshot(sequence, snapshot.due);
    transfers_.SaveAndRelease(snapshot.slot, state->slot.data(),
                              Emit(sequence, snapshot.due, state));
  }
}

std::shared_ptr<StateSnapshot> EngineLoop::DescribeSnapshot(Sequence& sequence, DueState due) {
  // Shared with a callback, which must be copyable; handed on from there.
  auto state = std::make_shared<StateSnapshot>(
      sequence.Describe(identity_, model_->state_layout(), due == DueState::kSnapshot));
  state->slot = StateBuffer::ForOverwrite(pool_->slot_bytes());
  return state;
}

StateTransfers::Done EngineLoop::Emit(Sequence& sequence, DueState due,
                                      std::shared_ptr<StateSnapshot> state) {
  return Counted(sequence, [&sequence, due, state = std::move(state)] {
    auto snapshot = std::make_unique<StateSnapshot>(std::move(*state));
    if (due == DueState::kPrompt) {
      sequence.sink().OnPromptState(std::move(snapshot));
    } else {
      sequence.sink().OnSnapshot(std::move(snapshot));
    }
  });
}

void EngineLoop::EmitSnapshot(Sequence& sequence, DueState due) {
  if (model_->backend()->copies_overlap()) MakeRoom();  // for a copy of it
  const auto state = DescribeSnapshot(sequence, due);
  transfers_.Save(sequence.slot, state->slot.data(), Emit(sequence, due, state));
}

std::unique_ptr<StateSnapshot> EngineLoop::TakeFinalState(Sequence& sequence) {
  auto state =
      std::make_unique<StateSnapshot>(sequence.Describe(identity_, model_->state_layout()));
  state->slot = std::move(sequence.host);
  if (sequence.slot >= 0 && !sequence.is_loading) {
    if (state->slot.size() == 0) state->slot = StateBuffer::ForOverwrite(pool_->slot_bytes());
    ++sequence.num_transfers;
    transfers_.SaveAndKeep(std::exchange(sequence.slot, -1), state->slot.data(),
                           [this, &sequence](int32_t slot) {
                             --sequence.num_transfers;
                             sequence.hot_id = hot_->Add(slot);
                           });
  }
  return state;
}

void EngineLoop::FinishSequence(Sequence& sequence, Ending ending, absl::Status status) {
  const Sequence::Clock::time_point now = Sequence::Clock::now();
  FinishInfo info;
  info.reason = ending.reason;
  info.status = std::move(status);
  info.flushed_text = sequence.FlushText();
  info.stop = std::move(ending.stop);
  info.stop_token_id = ending.stop_token_id;
  info.restored_tokens = sequence.source_position();
  info.prefill_tokens =
      std::min(sequence.position() - sequence.source_position(), sequence.prefill_tokens());
  info.output_tokens = sequence.output_tokens();
  info.position = sequence.position();
  info.skipped_snapshots = sequence.skipped_snapshots();
  info.scores = std::move(sequence.scores);
  if (sequence.started) {
    const bool has_sampled = sequence.output_tokens() > 0;
    const auto prefill_done = has_sampled ? sequence.first_sample_time : now;
    info.prefill_time = absl::FromChrono(prefill_done - sequence.start_time);
    info.decode_time = absl::FromChrono(now - prefill_done);
    stats_.host_swap_bytes -= sequence.host.size();
    // After an error there is no pending token, and the slot's bytes are suspect.
    if (sequence.request().save.at_end && ending.reason != FinishReason::kError) {
      info.state = TakeFinalState(sequence);
    }
  } else {
    stats_.queued_tokens -= static_cast<int64_t>(sequence.prefill_tokens());
  }
  sequence.is_finished = true;
  // A slot that a state is on its way into is released when that has arrived.
  const bool has_arrived = !sequence.is_loading || sequence.num_transfers == 0;
  if (sequence.slot >= 0 && has_arrived) pool_->Release(std::exchange(sequence.slot, -1));
  const StreamId id = sequence.id();
  scheduler_.Remove(id);
  ++stats_.finished_streams;
  stats_.cancelled_streams += ending.reason == FinishReason::kCancelled;
  const auto it = sequences_.find(id);
  finished_.push_back({std::move(it->second), std::move(info)});
  sequences_.erase(it);
}

EngineStats EngineLoop::stats() const {
  EngineStats stats = stats_;
  stats.queued_streams = scheduler_.num_waiting();
  stats.live_streams = scheduler_.num_live();
  stats.hot_slots = hot_->num_slots();
  stats.used_slots = pool_->num_used() - stats.hot_slots;
  stats.host_swap_bytes += hot_->spilled_bytes();
  return stats;
}

std::vector<StreamId> EngineLoop::DeliverFinished() {
  std::vector<StreamId> ids;
  std::vector<Finished> waiting;
  for (Finished& finished : std::exchange(finished_, {})) {
    if (finished.sequence->num_transfers > 0) {
      waiting.push_back(std::move(finished));
      continue;
    }
    ids.push_back(finished.sequence->id());
    finished.info.hot_id = finished.sequence->hot_id;
    finished.sequence->sink().OnFinished(std::move(finished.info));
    finished.sequence.reset();
  }
  finished_ = std::move(waiting);
  return ids;
}

}  // namespace vivarium::engine
