// StateCache: states in host memory, for a store to answer from instead of the disk. The least
// recently used go first.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/runtime/state.h"

namespace vivarium::statestore {

engine::StateBuffer CopyOf(const engine::StateBuffer& slot);

// Knows nothing of what is durable, live or allowed: whoever asks has read the state's manifest
// from the store in the same moment, and names by the manifest's chunk checksums which bytes it
// means. An entry of other checksums is no hit: so the cache can be late, but never wrong.
//
// Memory of a process that runs for months is no safer than a disk: an entry has a checksum of its
// own, made when it came, and each hit's copy is checked against it (at the speed of memory).
//
// Thread-safe; no lock is held while bytes are copied. So while a hit is copied, its entry may be
// in memory beyond the limit, as may those that callers hand in.
class StateCache {
 public:
  // Of the slots, and kEntryBytes for each besides. 0: keeps nothing.
  explicit StateCache(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  bool keeps_anything() const { return limit_bytes_ > 0; }
  // Whether an entry of that size can be kept at all.
  bool Fits(uint64_t slot_bytes) const { return slot_bytes + kEntryBytes <= limit_bytes_; }

  // Takes the bytes of state `key` in, unless they don't fit, in place of what it had under `key`.
  void Put(const std::string& key, std::vector<uint64_t> chunk_checksums, engine::StateBuffer slot)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // A copy. NOT_FOUND when there is none with these checksums; DATA_LOSS when it changed in memory,
  // whereupon it is gone.
  absl::StatusOr<engine::StateBuffer> Get(const std::string& key,
                                          const std::vector<uint64_t>& chunk_checksums)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Erase(const std::string& key) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Stats {
    uint64_t num_bytes = 0;
    uint64_t num_states = 0;
    uint64_t limit_bytes = 0;
    uint64_t num_evictions = 0;
  };
  Stats stats() const ABSL_LOCKS_EXCLUDED(mutex_);

  static constexpr uint64_t kEntryBytes = 512;  // tables, key and the checksums of 1 MiB chunks

 private:
  struct Entry {
    std::string key;
    std::vector<uint64_t> chunk_checksums;
    engine::StateBuffer slot;
    uint64_t checksum = 0;  // of slot
  };
  using Entries = std::list<std::shared_ptr<const Entry>>;

  void Remove(Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const uint64_t limit_bytes_;
  mutable absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);  // the most recently used first
  absl::flat_hash_map<std::string, Entries::iterator> by_key_ ABSL_GUARDED_BY(mutex_);
  uint64_t num_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t num_evictions_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace vivarium::statestore
