#include "engine/runtime/state_transfers.h"

#include <utility>

namespace vivarium::engine {

int32_t StateTransfers::Acquire() {
  while (pool_->num_free() == 0 && WaitForOldest()) {
  }
  return pool_->num_free() == 0 ? -1 : pool_->Acquire();
}

void StateTransfers::Load(int32_t slot, const std::byte* host, Done done) {
  Add(pool_->StartLoad(slot, host), /*slot=*/-1, /*keeps_slot=*/false, std::move(done));
}

void StateTransfers::SaveAndRelease(int32_t slot, std::byte* host, Done done) {
  Add(pool_->StartSave(slot, host), slot, /*keeps_slot=*/false, std::move(done));
}

void StateTransfers::SaveAndKeep(int32_t slot, std::byte* host,
                                 std::function<void(int32_t slot)> done) {
  Add(pool_->StartSave(slot, host), slot, /*keeps_slot=*/true,
      [slot, done = std::move(done)] { done(slot); });
}

void StateTransfers::Save(int32_t slot, std::byte* host, Done done) {
  if (!backend_->copies_overlap()) {
    Add(pool_->StartSave(slot, host), /*slot=*/-1, /*keeps_slot=*/false, std::move(done));
    return;
  }
  while (pool_->num_free() == 0 && WaitForOldest()) {
  }
  if (pool_->num_free() > 0) {
    const int32_t copy = pool_->Acquire();
    pool_->CopySlot(copy, slot);
    SaveAndRelease(copy, host, std::move(done));
    return;
  }
  Add(pool_->StartSave(slot, host), /*slot=*/-1, /*keeps_slot=*/false, std::move(done));
  while (WaitForOldest()) {
  }
}

void StateTransfers::Add(kernels::CopyTicket ticket, int32_t slot, bool keeps_slot, Done done) {
  transfers_.push_back({ticket, slot, keeps_slot, std::move(done)});
  if (!backend_->copies_overlap()) FinishOldest();
}

void StateTransfers::FinishOldest() {
  const Transfer transfer = std::move(transfers_.front());
  transfers_.pop_front();
  if (transfer.slot >= 0 && !transfer.keeps_slot) pool_->Release(transfer.slot);
  transfer.done();
}

void StateTransfers::Poll() {
  while (!transfers_.empty() && backend_->IsCopyDone(transfers_.front().ticket)) {
    if (!backend_->fault().empty()) return;  // asked after: else the copy was still good
    FinishOldest();
  }
}

bool StateTransfers::WaitForOldest() {
  if (transfers_.empty()) return false;
  backend_->WaitForCopy(transfers_.front().ticket);
  if (!backend_->fault().empty()) return false;
  FinishOldest();
  return true;
}

void StateTransfers::Drop() {
  if (transfers_.empty()) return;
  backend_->WaitForCopy(transfers_.back().ticket);
  for (const Transfer& transfer : transfers_) {
    if (transfer.slot >= 0) pool_->Release(transfer.slot);
  }
  transfers_.clear();
}

}  // namespace vivarium::engine
