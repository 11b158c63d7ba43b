#include "engine/runtime/scheduler.h"

#include <algorithm>
#include <cassert>

namespace vivarium::engine {

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits) {
  assert(limits.max_slots >= 1 && limits.max_live_streams >= limits.max_slots);
  assert(limits.max_num_batched_tokens >= limits.max_slots);
  assert(limits.max_logit_rows >= limits.max_slots);
  assert(limits.prefill_chunk_tokens >= 1 && limits.time_slice_tokens >= 1);
  assert(limits.prefill_tokens_beside_decode >= 1);
}

void Scheduler::Add(StreamId id, int32_t priority, absl::Time deadline, const RunNeed& need) {
  Stream stream{.priority = priority, .deadline = deadline, .need = need};
  stream.turn = next_turn_++;
  const bool is_new = streams_.emplace(id, stream).second;
  assert(is_new);
  (void)is_new;
  waiting_.insert(PlaceOf(stream, id));
  if (deadline < absl::InfiniteFuture()) deadlines_.emplace(deadline, id);
}

void Scheduler::SetNeed(StreamId id, const RunNeed& need) { streams_.at(id).need = need; }

void Scheduler::SetLoading(StreamId id, bool is_loading) {
  Stream& stream = streams_.at(id);
  assert(stream.phase == Phase::kResident);
  stream.is_loading = is_loading;
  if (is_loading) stream.slice_tokens = 0;
}

void Scheduler::Remove(StreamId id) {
  const auto it = streams_.find(id);
  assert(it != streams_.end());
  switch (it->second.phase) {
    case Phase::kWaiting:
      waiting_.erase(PlaceOf(it->second, id));
      break;
    case Phase::kReady:
      ready_.erase(PlaceOf(it->second, id));
      break;
    case Phase::kResident:
      std::erase(resident_, id);
      break;
  }
  deadlines_.erase({it->second.deadline, id});
  streams_.erase(it);
}

std::vector<StreamId> Scheduler::Expired(absl::Time now) const {
  std::vector<StreamId> expired;
  for (const auto& [deadline, id] : deadlines_) {
    if (deadline > now) break;
    expired.push_back(id);
  }
  return expired;
}

bool Scheduler::HasSlot(StreamId id) const {
  const auto it = streams_.find(id);
  return it != streams_.end() && it->second.phase == Phase::kResident;
}

StepPlan Scheduler::Plan() {
  ++step_;
  while (!waiting_.empty() && num_live() < limits_.max_live_streams) {
    const StreamId id = std::get<2>(*waiting_.begin());
    waiting_.erase(waiting_.begin());
    JoinReady(id);
  }
  StepPlan plan;
  FillSlots(&plan);
  PlanRuns(&plan);
  return plan;
}

void Scheduler::JoinReady(StreamId id) {
  Stream& stream = streams_.at(id);
  stream.phase = Phase::kReady;
  stream.turn = next_turn_++;
  ready_.insert(PlaceOf(stream, id));
}

void Scheduler::Grant(StreamId id, StepPlan* plan) {
  Stream& stream = streams_.at(id);
  ready_.erase(PlaceOf(stream, id));
  stream.phase = Phase::kResident;
  stream.slice_tokens = 0;
  resident_.push_back(id);
  plan->slot_in.push_back(id);
}

void Scheduler::FillSlots(StepPlan* plan) {
  std::vector<StreamId> evicted;
  while (!ready_.empty()) {
    const StreamId next = std::get<2>(*ready_.begin());
    if (num_resident() == limits_.max_slots) {
      const auto victim = FindVictim(streams_.at(next).priority);
      if (victim == resident_.end()) break;
      evicted.push_back(*victim);
      resident_.erase(victim);
    }
    Grant(next, plan);
  }
  // Only now, so that none of them gets its slot back in the same step.
  for (const StreamId id : evicted) JoinReady(id);
  plan->swap_out = std::move(evicted);
}

std::vector<StreamId>::iterator Scheduler::FindVictim(int32_t priority) {
  auto victim = resident_.end();
  int32_t lowest = priority;
  for (auto it = resident_.begin(); it != resident_.end(); ++it) {
    const Stream& stream = streams_.at(*it);
    if (stream.slice_tokens < limits_.time_slice_tokens) continue;
    if (stream.priority < lowest || (stream.priority == lowest && victim == resident_.end())) {
      victim = it;
      lowest = stream.priority;
    }
  }
  return victim;
}

void Scheduler::PlanRuns(StepPlan* plan) {
  // One token and one row of logits of each resident's are set aside; the rest is shared out.
  int64_t tokens_left = limits_.max_num_batched_tokens - num_resident();
  const int64_t spare_logit_rows = limits_.max_logit_rows - num_resident();
  int64_t logit_rows_left = spare_logit_rows;
  std::vector<StreamId> prefills;
  for (const StreamId id : resident_) {
    Stream& stream = streams_.at(id);
    if (stream.is_loading) continue;
    if (!stream.need.is_decode) {
      prefills.push_back(id);
      continue;
    }
    assert(stream.need.num_tokens == 1);
    plan->runs.push_back({id, 1});
    ++stream.slice_tokens;
  }
  if (!plan->runs.empty()) {
    const int64_t granted = static_cast<int64_t>(prefills.size());
    tokens_left =
        std::min(tokens_left, std::max<int64_t>(limits_.prefill_tokens_beside_decode - granted, 0));
  }
  std::stable_sort(prefills.begin(), prefills.end(), [this](StreamId a, StreamId b) {
    const Stream& left = streams_.at(a);
    const Stream& right = streams_.at(b);
    if (left.priority != right.priority) return left.priority > right.priority;
    return left.last_chunk_step < right.last_chunk_step;
  });
  for (const StreamId id : prefills) {
    Stream& stream = streams_.at(id);
    const bool every_row = stream.need.logits_every_row;
    int64_t wanted = std::min<int64_t>(stream.need.num_tokens, limits_.prefill_chunk_tokens);
    if (every_row) wanted = std::min(wanted, 1 + spare_logit_rows);
    int64_t num_tokens = std::min(wanted, 1 + tokens_left);
    if (every_row) num_tokens = std::min(num_tokens, 1 + logit_rows_left);
    if (num_tokens > 1) {
      tokens_left -= num_tokens - 1;
      if (every_row) logit_rows_left -= num_tokens - 1;
    }
    if (num_tokens == wanted) stream.last_chunk_step = step_;  // else it stays first in line
    plan->runs.push_back({id, static_cast<int32_t>(num_tokens)});
    stream.slice_tokens += num_tokens;
  }
}

}  // namespace vivarium::engine
