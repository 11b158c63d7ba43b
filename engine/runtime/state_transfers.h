// StateTransfers: states on their way between slots and the host, while steps go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>

#include "engine/runtime/state_pool.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// Transfers are done one after the other, in the order of the calls below, so one may read what the
// one before it wrote. `done` is called once, on the engine's thread: before the call returns where
// the backend's copies don't overlap, else from Poll, WaitForOldest or Acquire. It must not call
// back. Host memory stays where it is, and untouched, until then.
//
// Not thread-safe (the engine's thread). `backend` and `pool` must outlive it. Drop first.
class StateTransfers {
 public:
  using Done = std::function<void()>;

  StateTransfers(kernels::Backend* backend, StatePool* pool) : backend_(backend), pool_(pool) {}
  ~StateTransfers() { Drop(); }
  StateTransfers(const StateTransfers&) = delete;
  StateTransfers& operator=(const StateTransfers&) = delete;

  // A free slot. Waits for transfers that are to leave one; -1 when none does, or the device is
  // faulty.
  int32_t Acquire();
  // host -> slot, which is its owner's from `done` on.
  void Load(int32_t slot, const std::byte* host, Done done);
  // slot -> host; releases the slot.
  void SaveAndRelease(int32_t slot, std::byte* host, Done done);
  // slot -> host; from `done` on the slot is its owner's again.
  void SaveAndKeep(int32_t slot, std::byte* host, std::function<void(int32_t slot)> done);
  // slot -> host, of the state as it is now: the slot may change at once. Goes by way of a free
  // slot; without one, it waits.
  void Save(int32_t slot, std::byte* host, Done done);

  // Takes in what is done. Never blocks.
  void Poll();
  // Waits for the oldest one; false when there is none. With a faulty device nothing is ever done.
  bool WaitForOldest();
  // Forgets all of them, without `done`: their slots that were to be released are. Host memory may
  // go when it returns.
  void Drop();

  bool empty() const { return transfers_.empty(); }

 private:
  struct Transfer {
    kernels::CopyTicket ticket;
    int32_t
        slot;  // the transfer's own until it is done, -1 = none: it is released then, unless kept
    bool keeps_slot;
    Done done;
  };
  void Add(kernels::CopyTicket ticket, int32_t slot, bool keeps_slot, Done done);
  void FinishOldest();

  kernels::Backend* const backend_;
  StatePool* const pool_;
  std::deque<Transfer> transfers_;  // oldest first
};

}  // namespace vivarium::engine
