// EngineLoop: what the engine's thread does, step by step.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "engine/model/model.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/hot_states.h"
#include "engine/runtime/scheduler.h"
#include "engine/runtime/sequence.h"
#include "engine/runtime/state_pool.h"
#include "engine/runtime/state_transfers.h"
#include "engine/runtime/token_sampler.h"

namespace vivarium::engine {

// Slots besides the streams' own, for states on their way to the host; 0 where copies are at once.
int32_t SpareSlots(const kernels::Backend& backend, int32_t max_slots);
inline constexpr int32_t kMaxSpareSlots = 4;

// Owns the sequences, the slots and the scheduler; single-threaded and without a clock of its own,
// so a test can drive it step by step. After every call each unfinished stream has a state: a
// slot's bytes or a host buffer, and a pending token. States move between the two while steps go
// on: a stream joins the batch when its state is in its slot, and a snapshot or the last event is
// handed out when its bytes are on the host.
class EngineLoop {
 public:
  // `pool` has options.max_slots slots, and SpareSlots and options.snapshot_slots more; `sampler`
  // has room for the model's max_logit_rows. `model` must outlive the loop.
  EngineLoop(Model* model, ModelIdentity identity, std::unique_ptr<StatePool> pool,
             std::unique_ptr<TokenSampler> sampler, const EngineOptions& options);
  // Streams without their last event never get it: call FinishAll and DeliverFinished first.
  ~EngineLoop();

  void Add(std::unique_ptr<Sequence> sequence);
  // No-op for an unknown or finished stream.
  void Finish(StreamId id, FinishReason reason);
  void FinishAll(FinishReason reason);
  void FinishExpired(absl::Time now);
  // One step: plan, swap, forward, sample, accept, emit. With nothing to run, waits for a state on
  // its way.
  void Step();
  // OK until the device fails; then UNAVAILABLE, naming its fault. Every stream ends with it.
  const absl::Status& fault() const { return fault_; }

  // The last event of the streams that have finished since the last call; their sinks are
  // destroyed. Apart from finishing them, so that stats() can be published first: who hears of the
  // end of a stream finds it counted. Returns their ids.
  std::vector<StreamId> DeliverFinished();

  // Nothing to do before the next Add.
  bool idle() const { return sequences_.empty() && finished_.empty() && transfers_.empty(); }
  EngineStats stats() const;
  // The end states that are still in their slots; thread-safe.
  const std::shared_ptr<HotStates>& hot_states() const { return hot_; }

 private:
  // Asks the device; when it has failed, all streams end.
  bool IsFaulty();
  // Streams whose states have arrived take part from now on.
  void JoinLoaded();
  // Takes what can't run yet out of the plan.
  void HoldLoading(StepPlan* plan);
  // A transfer's `done`, which also counts it off for its sequence.
  StateTransfers::Done Counted(Sequence& sequence, StateTransfers::Done done);
  // --- slots (engine_loop_slots.cc) ---
  // Where no slot is free, the oldest hot state that is not leased leaves its own.
  void MakeRoom();
  // A slot, whatever leases hold: a hot state goes to host memory before a stream waits. -1 when
  // the device is faulty.
  int32_t AcquireSlot();
  // Gives a stream whose source is hot its slot (-1: a faulty device). True: with the state in it.
  bool PlaceHot(Sequence& sequence);
  void SwapOut(Sequence& sequence);
  // False: the device is faulty.
  bool SlotIn(Sequence& sequence);
  // `has_state`: the slot has the source's state already.
  void Start(Sequence& sequence, bool has_state);
  // Gathers the batch and runs the model; null when no row is to run. Ends a run early where a
  // snapshot is due and no slot is free for it.
  float* Forward(std::vector<PlannedRun>* runs);
  // The run's segments: a chain, cut at the snapshots inside of it, each with a slot of its own.
  void AddSegments(Sequence& sequence, PlannedRun* run);
  // Samples and scores, for every row of logits, what its run wants it for.
  void Sample(const std::vector<PlannedRun>& runs, float* logits);
  // Takes in what the run gave; row `row` of the sampler's is its first. Returns how many are its.
  int64_t Accept(Sequence& sequence, int32_t num_tokens, int64_t row);
  absl::Status AcceptScores(Sequence& sequence, int32_t num_tokens, int64_t row);
  absl::StatusOr<std::optional<Ending>> AcceptSample(Sequence& sequence, int64_t row);
  int32_t NumLogitRows(const Sequence& sequence, int32_t num_tokens) const;
  void EmitSnapshot(Sequence& sequence, DueState due);
  // The state at the sequence's position, but for its bytes, which have room; and what hands it out
  // when they are there.
  std::shared_ptr<StateSnapshot> DescribeSnapshot(Sequence& sequence, DueState due);
  StateTransfers::Done Emit(Sequence& sequence, DueState due, std::shared_ptr<StateSnapshot> state);
  // Goes on to the snapshots inside the sequence's run, hands them out (unless !emits), and frees
  // their slots.
  void TakeSnapshots(Sequence& sequence, bool emits);
  void FinishSequence(Sequence& sequence, Ending ending, absl::Status status = absl::OkStatus());
  std::unique_ptr<StateSnapshot> TakeFinalState(Sequence& sequence);

  Model* model_;
  ModelIdentity identity_;
  std::unique_ptr<StatePool> pool_;
  const std::shared_ptr<HotStates> hot_;
  StateTransfers transfers_;
  EngineOptions options_;
  Scheduler scheduler_;
  std::unique_ptr<TokenSampler> sampler_;
  absl::flat_hash_map<StreamId, std::unique_ptr<Sequence>> sequences_;
  struct Finished {
    std::unique_ptr<Sequence> sequence;
    FinishInfo info;
  };
  std::vector<Finished> finished_;  // not yet delivered
  std::vector<StreamId> loaded_;    // not yet joined
  absl::Status fault_;
  EngineStats stats_;

  // Of the step under way; kept for their capacity.
  std::vector<int32_t> token_ids_;
  std::vector<kernels::Segment> segments_;
  struct SnapshotSlot {
    StreamId id;
    uint64_t position;
    int32_t slot;
    DueState due;
  };
  std::vector<SnapshotSlot> snapshots_;  // inside runs, in their order
  size_t num_snapshots_taken_ = 0;
  std::vector<int32_t> logit_rows_;
};

}  // namespace vivarium::engine
