#include "engine/runtime/hot_states.h"

#include <cassert>
#include <cstring>

namespace vivarium::engine {

HotLease& HotLease::operator=(HotLease&& other) noexcept {
  if (this != &other) {
    Release();
    states_ = std::move(other.states_);
    id_ = std::exchange(other.id_, 0);
  }
  return *this;
}

void HotLease::Release() {
  if (id_ == 0) return;
  states_->Release(std::exchange(id_, 0));
  states_.reset();
}

HotId HotStates::Add(int32_t slot) {
  absl::MutexLock lock(&mutex_);
  const HotId id = next_id_++;
  auto entry = std::make_unique<Entry>();
  entry->slot = slot;
  entry->age = by_age_.insert(by_age_.end(), id);
  entries_.emplace(id, std::move(entry));
  return id;
}

void HotStates::Name(HotId id, std::string name) {
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end() || name.empty()) return;
  Entry& entry = *it->second;
  if (!entry.name.empty()) names_.erase(entry.name);
  const auto [named, is_new] = names_.emplace(name, id);
  if (!is_new) {
    entries_.at(named->second)->name.clear();
    named->second = id;
  }
  entry.name = std::move(name);
}

HotLease HotStates::Lease(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  const auto named = names_.find(name);
  if (is_closed_ || named == names_.end()) return {};
  if (++entries_.at(named->second)->num_leases == 1) ++num_leased_;
  return HotLease(shared_from_this(), named->second);
}

void HotStates::EndLease(Entry& entry) {
  if (--entry.num_leases == 0) --num_leased_;
}

std::unique_ptr<HotStates::Entry> HotStates::Remove(Entries::iterator it) {
  std::unique_ptr<Entry> entry = std::move(it->second);
  if (entry->slot < 0) {
    --num_spilled_;
    spilled_bytes_ -= entry->host.size();
  }
  by_age_.erase(entry->age);
  if (!entry->name.empty()) names_.erase(entry->name);
  entries_.erase(it);
  return entry;
}

int32_t HotStates::TakeOldest() {
  absl::MutexLock lock(&mutex_);
  for (const HotId id : by_age_) {
    const auto it = entries_.find(id);
    if (it->second->num_leases == 0) return Remove(it)->slot;
  }
  return -1;
}

bool HotStates::HasUnleased() const {
  absl::MutexLock lock(&mutex_);
  return entries_.size() > num_leased_;
}

int32_t HotStates::SlotOf(const HotLease& lease) const {
  absl::MutexLock lock(&mutex_);
  return entries_.at(lease.id_)->slot;
}

int32_t HotStates::Take(HotLease* lease) {
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(lease->id_);
  if (it->second->slot < 0 || it->second->num_leases > 1) return -1;
  lease->id_ = 0;
  EndLease(*it->second);
  return Remove(it)->slot;
}

StateBuffer HotStates::TakeSpilled(HotLease* lease) {
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(lease->id_);
  Entry& entry = *it->second;
  assert(entry.slot < 0 && entry.host.size() > 0);
  lease->id_ = 0;
  EndLease(entry);
  if (entry.num_leases == 0) return std::move(Remove(it)->host);
  StateBuffer copy = StateBuffer::ForOverwrite(entry.host.size());
  std::memcpy(copy.data(), entry.host.data(), copy.size());
  return copy;
}

HotStates::Placed HotStates::Oldest() const {
  absl::MutexLock lock(&mutex_);
  for (const HotId id : by_age_) {
    const int32_t slot = entries_.at(id)->slot;
    if (slot >= 0) return {id, slot};
  }
  return {};
}

void HotStates::Spill(HotId id, StateBuffer host) {
  std::unique_ptr<Entry> gone;  // after the lock
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(id);
  Entry& entry = *it->second;
  entry.slot = -1;
  entry.host = std::move(host);
  ++num_spilled_;
  spilled_bytes_ += entry.host.size();
  if (entry.num_leases == 0) gone = Remove(it);
}

std::vector<int32_t> HotStates::Close() {
  std::vector<int32_t> slots;
  absl::MutexLock lock(&mutex_);
  is_closed_ = true;
  for (auto& [id, entry] : entries_) {
    if (entry->slot >= 0) slots.push_back(entry->slot);
  }
  entries_.clear();
  by_age_.clear();
  names_.clear();
  num_leased_ = num_spilled_ = spilled_bytes_ = 0;
  return slots;
}

void HotStates::Release(HotId id) {
  std::unique_ptr<Entry> gone;
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;  // closed
  Entry& entry = *it->second;
  by_age_.splice(by_age_.end(), by_age_, entry.age);
  EndLease(entry);
  if (entry.num_leases == 0 && entry.slot < 0) gone = Remove(it);
}

int32_t HotStates::num_slots() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int32_t>(entries_.size() - num_spilled_);
}

uint64_t HotStates::spilled_bytes() const {
  absl::MutexLock lock(&mutex_);
  return spilled_bytes_;
}

}  // namespace vivarium::engine
