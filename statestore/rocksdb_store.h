// The durable StateStore, on RocksDB. How it lays out keys and commits is told in README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "statestore/clock.h"
#include "statestore/state_codec.h"
#include "statestore/state_store.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace vivarium::statestore {

struct RocksDbOptions {
  uint32_t chunk_bytes = kDefaultChunkBytes;  // multiple of 64 in [kMinChunkBytes, kMaxChunkBytes]
  // Below so much free disk space the store is read-only: commits and updates are
  // RESOURCE_EXHAUSTED (free bytes and reserve named) before anything is written; reading and
  // deleting go on; with the space the store recovers by itself.
  uint64_t disk_reserve_bytes = uint64_t{256} << 20;
  QuotaOptions quotas;
  size_t max_requests_per_tenant = kMaxRequestsPerTenant;
  // States that one page of a list looks at; a page that reaches it ends early, with a token.
  size_t max_scanned_per_page = 20000;
  size_t max_prefix_candidates = kMaxPrefixCandidates;  // that FindPrefix looks at
  // Hashes of prefixes kept in memory, 24 bytes each; states with others are not found.
  size_t max_prefix_hashes = size_t{1} << 22;
  uint64_t prefix_hash_mask = ~uint64_t{0};          // fewer bits in tests: more of them are equal
  uint64_t write_buffer_bytes = uint64_t{64} << 20;  // of chunks, in memory, before a flush
  // The chunks of a state of so many bytes or more are written once, to a file of their own, which
  // costs three syncs; those of a smaller one to the log, whose sync it shares with others, and
  // later to a blob file.
  uint64_t min_file_bytes = uint64_t{8} << 20;
  // Host memory for states that were saved or loaded last (state_cache.h); 0 = none. A hit still
  // reads and checks the manifest; VerifyState and Scrub always read the disk.
  uint64_t state_cache_bytes = 0;
  bool create_if_missing = true;  // else NOT_FOUND where there is no store
  rocksdb::Env* env = nullptr;    // for fault injection in tests; null = the system's
};

// Opens, or makes, the store in `directory` (mode 0700, parents made as needed) and removes what
// unfinished commits left. `events` may be null, else it must outlive the store.
// FAILED_PRECONDITION when another process, or this one, has it open, or the directory holds
// something else; UNIMPLEMENTED for a newer format; DATA_LOSS for a damaged one; INVALID_ARGUMENT
// for an option out of range.
absl::StatusOr<std::unique_ptr<StateStore>> OpenRocksDbStore(const std::string& directory,
                                                             const RocksDbOptions& options,
                                                             Clock clock, StoreEvents* events);

// A set of backups (StateStore::AddBackup).
absl::StatusOr<std::vector<BackupInfo>> ListBackups(const std::string& backups);
// Makes a store in `directory`, new or empty, of the backup `backup_id`, 0 = the latest. Files are
// checked as the backup has them; Scrub says whether every state is sound.
absl::Status RestoreBackup(const std::string& backups, uint32_t backup_id,
                           const std::string& directory);

// Makes `directory` and its parents, as far as they are not there, for nobody else (mode 0700).
absl::Status MakePrivateDirectory(const std::string& directory);

}  // namespace vivarium::statestore
