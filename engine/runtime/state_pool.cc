#include "engine/runtime/state_pool.h"

#include <cstdio>
#include <cstdlib>
#include <limits>

#include "absl/strings/str_cat.h"

namespace vivarium::engine {
namespace {

[[noreturn]] void Die(const char* what, int32_t slot) {
  std::fprintf(stderr, "StatePool: %s (slot %d)\n", what, slot);
  std::abort();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StatePool>> StatePool::Create(kernels::Backend* backend,
                                                             uint64_t slot_bytes,
                                                             int32_t num_slots) {
  if (num_slots < 1 || slot_bytes == 0 || slot_bytes % 64 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("state pool of ", num_slots, " slots of ", slot_bytes,
                     " bytes: needs at least one slot and a positive multiple of 64 bytes"));
  }
  const uint64_t max_bytes = static_cast<uint64_t>(std::numeric_limits<std::ptrdiff_t>::max());
  void* memory = nullptr;
  if (slot_bytes <= max_bytes / static_cast<uint64_t>(num_slots)) {
    memory = backend->Allocate(slot_bytes * static_cast<uint64_t>(num_slots));
  }
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no device memory for the state pool: ", num_slots, " slots * ", slot_bytes,
        " bytes = ", static_cast<double>(num_slots) * static_cast<double>(slot_bytes), " bytes"));
  }
  return std::unique_ptr<StatePool>(
      new StatePool(backend, slot_bytes, num_slots, static_cast<std::byte*>(memory)));
}

StatePool::StatePool(kernels::Backend* backend, uint64_t slot_bytes, int32_t num_slots,
                     std::byte* slots)
    : backend_(backend), slot_bytes_(slot_bytes), slots_(slots), in_use_(num_slots, false) {
  free_.reserve(num_slots);
  for (int32_t slot = num_slots - 1; slot >= 0; --slot) free_.push_back(slot);
}

StatePool::~StatePool() { backend_->Free(slots_); }

int32_t StatePool::Acquire() {
  if (free_.empty()) Die("no free slot", -1);
  const int32_t slot = free_.back();
  free_.pop_back();
  in_use_[slot] = true;
  return slot;
}

void StatePool::Release(int32_t slot) {
  At(slot);
  in_use_[slot] = false;
  free_.push_back(slot);
}

void StatePool::Zero(int32_t slot) { backend_->Zero(At(slot), slot_bytes_); }

void StatePool::CopySlot(int32_t to, int32_t from) {
  backend_->CopyOnDevice(At(to), At(from), slot_bytes_);
}

kernels::CopyTicket StatePool::StartLoad(int32_t slot, const std::byte* host) {
  return backend_->StartCopyToDevice(At(slot), host, slot_bytes_);
}

kernels::CopyTicket StatePool::StartSave(int32_t slot, std::byte* host) const {
  return backend_->StartCopyToHost(host, At(slot), slot_bytes_);
}

std::byte* StatePool::At(int32_t slot) const {
  if (slot < 0 || slot >= num_slots() || !in_use_[slot]) Die("slot not in use", slot);
  return slots_ + static_cast<uint64_t>(slot) * slot_bytes_;
}

}  // namespace vivarium::engine
