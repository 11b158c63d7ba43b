#include "engine/runtime/state_transfers.h"

#include <utility>

namespace vivarium::engine {

int32_t StateTransfers::Acquire() {
  while (pool_->num_free() == 0 && WaitForOldest()) {
  }
  return pool_->Acquire();
}

void StateTransfers::Load(int32_t slot, const std::byte* host, Done done) {
  Add(pool_->StartLoad(slot, host), /*slot_to_release=*/-1, std::move(done));
}

void StateTransfers::SaveAndRelease(int32_t slot, std::byte* host, Done done) {
  Add(pool_->StartSave(slot, host), slot, std::move(done));
}

void StateTransfers::Save(int32_t slot, std::byte* host, Done done) {
  if (!backend_->copies_overlap()) {
    Add(pool_->StartSave(slot, host), /*slot_to_release=*/-1, std::move(done));
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
  Add(pool_->StartSave(slot, host), /*slot_to_release=*/-1, std::move(done));
  while (WaitForOldest()) {
  }
}

void StateTransfers::Add(kernels::CopyTicket ticket, int32_t slot_to_release, Done done) {
  transfers_.push_back({ticket, slot_to_release, std::move(done)});
  if (!backend_->copies_overlap()) FinishOldest();
}

void StateTransfers::FinishOldest() {
  const Transfer transfer = std::move(transfers_.front());
  transfers_.pop_front();
  if (transfer.slot_to_release >= 0) pool_->Release(transfer.slot_to_release);
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
    if (transfer.slot_to_release >= 0) pool_->Release(transfer.slot_to_release);
  }
  transfers_.clear();
}

}  // namespace vivarium::engine
