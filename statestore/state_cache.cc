#include "statestore/state_cache.h"

#include <cstring>
#include <iterator>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"

namespace vivarium::statestore {
namespace {

std::string_view AsText(const engine::StateBuffer& slot) {
  return {reinterpret_cast<const char*>(slot.data()), slot.size()};
}

}  // namespace

engine::StateBuffer CopyOf(const engine::StateBuffer& slot) {
  auto copy = engine::StateBuffer::ForOverwrite(slot.size());
  if (slot.size() > 0) std::memcpy(copy.data(), slot.data(), slot.size());
  return copy;
}

void StateCache::Put(const std::string& key, std::vector<uint64_t> chunk_checksums,
                     engine::StateBuffer slot) {
  if (!Fits(slot.size())) return Erase(key);
  auto entry = std::make_shared<Entry>();
  entry->key = key;
  entry->chunk_checksums = std::move(chunk_checksums);
  entry->checksum = Checksum(AsText(slot));
  entry->slot = std::move(slot);
  Entries gone;  // after the lock
  absl::MutexLock lock(&mutex_);
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    gone.push_back(*found->second);
    Remove(found->second);
  }
  num_bytes_ += entry->slot.size() + kEntryBytes;
  entries_.push_front(std::move(entry));
  by_key_.emplace(key, entries_.begin());
  while (num_bytes_ > limit_bytes_) {
    gone.push_back(entries_.back());
    Remove(std::prev(entries_.end()));
    ++num_evictions_;
  }
}

void StateCache::Remove(Entries::iterator entry) {
  num_bytes_ -= (*entry)->slot.size() + kEntryBytes;
  by_key_.erase((*entry)->key);
  entries_.erase(entry);
}

absl::StatusOr<engine::StateBuffer> StateCache::Get(const std::string& key,
                                                    const std::vector<uint64_t>& chunk_checksums) {
  std::shared_ptr<const Entry> entry;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return absl::NotFoundError("not in memory");
    entry = *found->second;
    if (entry->chunk_checksums != chunk_checksums) {
      Remove(found->second);
      return absl::NotFoundError("in memory are the bytes of another state");
    }
    entries_.splice(entries_.begin(), entries_, found->second);
  }
  engine::StateBuffer copy = CopyOf(entry->slot);
  if (Checksum(AsText(copy)) == entry->checksum) return copy;
  absl::MutexLock lock(&mutex_);
  const auto found = by_key_.find(key);
  if (found != by_key_.end() && *found->second == entry) Remove(found->second);
  return absl::DataLossError(absl::StrCat("bytes of ", key, " changed in memory"));
}

void StateCache::Erase(const std::string& key) {
  std::shared_ptr<const Entry> gone;
  absl::MutexLock lock(&mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  gone = *found->second;
  Remove(found->second);
}

StateCache::Stats StateCache::stats() const {
  absl::MutexLock lock(&mutex_);
  return {num_bytes_, entries_.size(), limit_bytes_, num_evictions_};
}

}  // namespace vivarium::statestore
