// PrefixIndex: which prefix hashes have stored states, in memory, so that all of a long prompt's
// prefixes are looked up without a disk in between. The durable index is what counts; this one is
// made from it when the store opens and tells where to look in it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"

namespace vivarium::statestore {

// Thread-safe. About 24 bytes a hash.
class PrefixIndex {
 public:
  // Of all tenants together `max_hashes` at most; states with any other hash are then not found,
  // until the store is opened again with fewer.
  explicit PrefixIndex(size_t max_hashes) : max_hashes_(max_hashes) {}

  // One state more, one state fewer, of `tenant` with `hash`. The last one takes the hash with it.
  void Add(const std::string& tenant, uint64_t hash) ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const std::string& tenant, uint64_t hash) ABSL_LOCKS_EXCLUDED(mutex_);
  // The largest p in [1, end) for which a state of `tenant` has hashes[p]; 0 = none.
  size_t LongestBelow(const std::string& tenant, std::span<const uint64_t> hashes, size_t end) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_hashes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Counts = absl::flat_hash_map<uint64_t, uint32_t>;  // states by hash

  const size_t max_hashes_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Counts> tenants_ ABSL_GUARDED_BY(mutex_);
  size_t num_hashes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace vivarium::statestore
