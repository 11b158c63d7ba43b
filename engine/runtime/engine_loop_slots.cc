// EngineLoop: which slots streams get, and how their states come into them and out of them.
#include <cstring>
#include <utility>

#include "engine/runtime/engine_loop.h"

namespace vivarium::engine {

void EngineLoop::MakeRoom() {
  if (pool_->num_free() > 0) return;
  const int32_t slot = hot_->TakeOldest();
  if (slot < 0) return;
  pool_->Release(slot);
  ++stats_.hot_evictions;
}

int32_t EngineLoop::AcquireSlot() {
  MakeRoom();
  const int32_t slot = transfers_.Acquire();
  if (slot >= 0 || !model_->backend()->fault().empty()) return slot;
  // Nothing is on its way out: what a stream lacks is held by leases.
  const HotStates::Placed oldest = hot_->Oldest();
  const auto host = std::make_shared<StateBuffer>(StateBuffer::ForOverwrite(pool_->slot_bytes()));
  transfers_.SaveAndRelease(oldest.slot, host->data(),
                            [this, host, id = oldest.id] { hot_->Spill(id, std::move(*host)); });
  ++stats_.hot_evictions;
  ++stats_.hot_spills;
  return transfers_.Acquire();
}

bool EngineLoop::PlaceHot(Sequence& sequence) {
  HotLease lease = std::move(sequence.hot);
  ++stats_.hot_resumes;
  const bool copies =
      sequence.request().keeps_hot && (pool_->num_free() > 0 || hot_->HasUnleased());
  if (!copies) sequence.slot = hot_->Take(&lease);
  if (sequence.slot >= 0) return true;
  sequence.slot = AcquireSlot();
  if (sequence.slot < 0) return false;
  if (const int32_t from = hot_->SlotOf(lease); from >= 0) {
    pool_->CopySlot(sequence.slot, from);
    return true;
  }
  sequence.host = hot_->TakeSpilled(&lease);
  return false;
}

void EngineLoop::SwapOut(Sequence& sequence) {
  if (sequence.host.size() == 0) {
    sequence.host = StateBuffer::ForOverwrite(pool_->slot_bytes());
    stats_.host_swap_bytes += sequence.host.size();
  }
  transfers_.SaveAndRelease(std::exchange(sequence.slot, -1), sequence.host.data(),
                            Counted(sequence, [] {}));
  ++stats_.swaps_out;
}

bool EngineLoop::SlotIn(Sequence& sequence) {
  bool has_state = false;  // in the slot
  if (sequence.hot) {
    has_state = PlaceHot(sequence);
  } else {
    sequence.slot = AcquireSlot();
  }
  if (sequence.slot < 0) return false;
  if (sequence.started) {
    ++stats_.swaps_in;
  } else {
    Start(sequence, has_state);
  }
  sequence.is_loading = true;
  if (!has_state && sequence.host.size() == 0) {
    pool_->Zero(sequence.slot);
    has_state = true;
  }
  if (has_state) {
    loaded_.push_back(sequence.id());
    return true;
  }
  transfers_.Load(sequence.slot, sequence.host.data(), Counted(sequence, [this, &sequence] {
                    if (sequence.is_finished) {
                      pool_->Release(std::exchange(sequence.slot, -1));
                    } else {
                      loaded_.push_back(sequence.id());
                    }
                  }));
  return true;
}

void EngineLoop::Start(Sequence& sequence, bool has_state) {
  sequence.started = true;
  stats_.queued_tokens -= static_cast<int64_t>(sequence.prefill_tokens());
  sequence.start_time = Sequence::Clock::now();
  stats_.host_swap_bytes += sequence.host.size();
  stats_.restored_tokens += sequence.source_position();
  sequence.sink().OnStarted(
      {.queue_time = absl::FromChrono(sequence.start_time - sequence.submit_time),
       .restored_tokens = sequence.source_position(),
       .prefill_tokens = sequence.prefill_tokens()});
  // Only the prompt's end can be due at a source's own position.
  const DueState due = sequence.DueAt(sequence.position());
  if (due == DueState::kNone) return;
  if (has_state) return EmitSnapshot(sequence, due);
  auto state =
      std::make_unique<StateSnapshot>(sequence.Describe(identity_, model_->state_layout()));
  state->slot = StateBuffer(pool_->slot_bytes());
  if (sequence.host.size() > 0) {
    std::memcpy(state->slot.data(), sequence.host.data(), state->slot.size());
  }
  sequence.sink().OnSnapshot(std::move(state));
}

}  // namespace vivarium::engine
