// StatePool: the device-resident states, by slot index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/state.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// A fixed number of slots in one device allocation, made once: slot s is the contiguous span of
// slot_bytes that begins at slots() + s * slot_bytes, so to load, save or clear a state is one
// copy. Not thread-safe (the engine's thread). Must not outlive `backend`.
class StatePool {
 public:
  // num_slots >= 1; slot_bytes a positive multiple of 64. RESOURCE_EXHAUSTED with the arithmetic
  // when device memory is short.
  static absl::StatusOr<std::unique_ptr<StatePool>> Create(kernels::Backend* backend,
                                                           uint64_t slot_bytes, int32_t num_slots);
  ~StatePool();
  StatePool(const StatePool&) = delete;
  StatePool& operator=(const StatePool&) = delete;

  // A free slot; aborts when there is none (num_free() says). Its contents are some state's, with
  // zeros between a layout's parts, as in all slots from Create on.
  int32_t Acquire();
  // Aborts unless `slot` is in use.
  void Release(int32_t slot);

  void Zero(int32_t slot);
  void CopySlot(int32_t to, int32_t from);
  // Begin to copy slot_bytes bytes: Backend::StartCopyToDevice and StartCopyToHost. See
  // StateTransfers.
  kernels::CopyTicket StartLoad(int32_t slot, const std::byte* host);
  kernels::CopyTicket StartSave(int32_t slot, std::byte* host) const;

  std::byte* slots() { return slots_; }
  uint64_t slot_bytes() const { return slot_bytes_; }
  uint64_t pool_bytes() const { return slot_bytes_ * in_use_.size(); }
  int32_t num_slots() const { return static_cast<int32_t>(in_use_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_used() const { return num_slots() - num_free(); }

 private:
  StatePool(kernels::Backend* backend, uint64_t slot_bytes, int32_t num_slots, std::byte* slots);

  std::byte* At(int32_t slot) const;  // aborts unless `slot` is in use

  kernels::Backend* backend_;
  uint64_t slot_bytes_;
  std::byte* slots_;
  std::vector<int32_t> free_;  // last released, first used: likely still in a cache
  std::vector<bool> in_use_;
};

}  // namespace vivarium::engine
