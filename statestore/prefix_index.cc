#include "statestore/prefix_index.h"

#include <algorithm>

namespace vivarium::statestore {
namespace {

constexpr size_t kLookupsPerLock = 4096;  // so that a long prompt keeps no writer waiting

}  // namespace

void PrefixIndex::Add(const std::string& tenant, uint64_t hash) {
  absl::MutexLock lock(&mutex_);
  Counts& counts = tenants_[tenant];
  const auto found = counts.find(hash);
  if (found != counts.end()) {
    ++found->second;
  } else if (num_hashes_ < max_hashes_) {
    counts.emplace(hash, 1);
    ++num_hashes_;
  }
}

void PrefixIndex::Remove(const std::string& tenant, uint64_t hash) {
  absl::MutexLock lock(&mutex_);
  const auto counts = tenants_.find(tenant);
  if (counts == tenants_.end()) return;
  const auto found = counts->second.find(hash);
  if (found == counts->second.end() || --found->second > 0) return;
  counts->second.erase(found);
  --num_hashes_;
  if (counts->second.empty()) tenants_.erase(counts);
}

size_t PrefixIndex::LongestBelow(const std::string& tenant, std::span<const uint64_t> hashes,
                                 size_t end) const {
  end = std::min(end, hashes.size());
  while (end > 1) {
    const size_t begin = end - std::min(end - 1, kLookupsPerLock);
    absl::ReaderMutexLock lock(&mutex_);
    const auto counts = tenants_.find(tenant);
    if (counts == tenants_.end()) return 0;
    while (end > begin) {
      if (counts->second.contains(hashes[--end])) return end;
    }
  }
  return 0;
}

size_t PrefixIndex::num_hashes() const {
  absl::ReaderMutexLock lock(&mutex_);
  return num_hashes_;
}

}  // namespace vivarium::statestore
