// Scheduler: who runs in the next step. Knows numbers only: no device, no tokens, no clock.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/runtime/engine.h"

namespace vivarium::engine {

struct SchedulerLimits {
  int32_t max_slots;                     // streams in one step
  int32_t max_live_streams;              // with a state: in a slot or swapped out; >= max_slots
  int32_t max_num_batched_tokens;        // rows of one step; >= max_slots
  int32_t max_logit_rows;                // rows with logits of one step; >= max_slots
  int32_t prefill_chunk_tokens;          // rows of one stream in one step
  int32_t prefill_tokens_beside_decode;  // rows that don't decode, of a step in which others do
  int32_t time_slice_tokens;             // tokens for which a slot can't be taken away
};

// What a stream would do if it had the device to itself.
struct RunNeed {
  int64_t num_tokens = 0;         // up to where it must stop next; 0 = it only needs a slot once
  bool is_decode = false;         // num_tokens is 1, sampled in the step before
  bool logits_every_row = false;  // else of the last row at most
};

struct PlannedRun {
  StreamId id;
  int32_t num_tokens;  // >= 1, or 0 where the need was 0
};

// One step, to be carried out in this order.
struct StepPlan {
  std::vector<StreamId> swap_out;  // lose their slots
  std::vector<StreamId> slot_in;   // get slots, for the first time or again
  std::vector<PlannedRun> runs;  // every stream with a slot that isn't loading, once; decodes first
};

// A stream waits in the queue (WAITING), then is live: it owns a state, in a slot or swapped out,
// and takes part in steps whenever it has a slot (PREFILL, then DECODE), until Remove (FINISHED).
//
// Policy. The queue is by priority, then first come first served, and moves on while there is room
// among the live streams. Slots go to live streams without one by priority, then by how long they
// have been waiting for one; when there are more live streams than slots, a stream that has had its
// time slice gives way to one of the same or a higher priority and goes to the end of the line. So
// streams of one priority take turns, and none of them starves; a lower priority waits for a higher
// one. Every stream with a slot, and its state in it, runs at least one token in every step; what
// is left of the token budget goes to prefill chunks, by priority, and among equals to those whose
// last one was the longest ago. Beside decodes prefill has a smaller budget, so that a new prompt
// makes the others' next token wait for a bounded time (but each prefill's one token is always
// granted).
//
// Not thread-safe.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // `id` is new. The stream joins the queue.
  void Add(StreamId id, int32_t priority, absl::Time deadline, const RunNeed& need);
  // After each run: what `id` needs next.
  void SetNeed(StreamId id, const RunNeed& need);
  // `id` has a slot, but its state is on the way there: until told otherwise it runs nothing, and
  // the run that it was planned for in this step did not happen.
  void SetLoading(StreamId id, bool is_loading);
  // `id` is finished, wherever it was; its slot is free again.
  void Remove(StreamId id);

  // Streams whose deadline is `now` or earlier, in the queue or live, earliest first.
  std::vector<StreamId> Expired(absl::Time now) const;

  // Assumes that the plan is carried out, and SetNeed or Remove called for each of its runs, before
  // the next Plan.
  StepPlan Plan();

  bool HasSlot(StreamId id) const;
  bool empty() const { return streams_.empty(); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_live() const { return static_cast<int32_t>(streams_.size() - waiting_.size()); }
  int32_t num_resident() const { return static_cast<int32_t>(resident_.size()); }

 private:
  enum class Phase : uint8_t { kWaiting, kReady, kResident };  // kReady: live, without a slot
  struct Stream {
    int32_t priority;
    absl::Time deadline;
    RunNeed need;
    Phase phase = Phase::kWaiting;
    uint64_t turn = 0;             // when it joined the line it stands in
    int64_t slice_tokens = 0;      // run since it got its slot
    uint64_t last_chunk_step = 0;  // when it last had a whole prefill chunk
    bool is_loading = false;
  };
  // Higher priorities first, then earlier turns.
  using Place = std::tuple<int64_t, uint64_t, StreamId>;
  static Place PlaceOf(const Stream& stream, StreamId id) {
    return {-int64_t{stream.priority}, stream.turn, id};
  }

  void JoinReady(StreamId id);
  void Grant(StreamId id, StepPlan* plan);
  void FillSlots(StepPlan* plan);
  // The resident that gives way to a stream of `priority`; resident_.end() when none has to.
  std::vector<StreamId>::iterator FindVictim(int32_t priority);
  void PlanRuns(StepPlan* plan);

  SchedulerLimits limits_;
  std::map<StreamId, Stream> streams_;
  std::set<Place> waiting_;
  std::set<Place> ready_;
  std::vector<StreamId> resident_;  // in the order in which they got their slots
  std::set<std::pair<absl::Time, StreamId>> deadlines_;  // finite ones
  uint64_t next_turn_ = 0;
  uint64_t step_ = 0;
};

}  // namespace vivarium::engine
