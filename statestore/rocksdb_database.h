// RocksDbDatabase: one open RocksDB with our options, as the store uses it: reads that answer
// absl::Status, and writes that stop for good after the first that failed, or until there is space
// again where the disk was full.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/write_batch.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "statestore/rocksdb_chunk_file.h"
#include "statestore/rocksdb_store.h"
#include "statestore/rocksdb_write_guard.h"

namespace vivarium::statestore {

// A consistent view; released on destruction. Must not outlive the database.
class RocksDbSnapshot {
 public:
  explicit RocksDbSnapshot(rocksdb::DB* db) : db_(db), snapshot_(db->GetSnapshot()) {}
  ~RocksDbSnapshot() { db_->ReleaseSnapshot(snapshot_); }
  RocksDbSnapshot(const RocksDbSnapshot&) = delete;
  RocksDbSnapshot& operator=(const RocksDbSnapshot&) = delete;

  const rocksdb::Snapshot* get() const { return snapshot_; }

 private:
  rocksdb::DB* const db_;
  const rocksdb::Snapshot* const snapshot_;
};

// The keys in [begin, end), by an iterator that owns its bounds.
class RocksDbRange {
 public:
  RocksDbRange(rocksdb::DB* db, std::string begin, std::string end,
               const rocksdb::Snapshot* snapshot);
  RocksDbRange(const RocksDbRange&) = delete;
  RocksDbRange& operator=(const RocksDbRange&) = delete;

  rocksdb::Iterator& iterator() { return *iterator_; }
  std::string_view key() const { return {iterator_->key().data(), iterator_->key().size()}; }
  std::string_view value() const { return {iterator_->value().data(), iterator_->value().size()}; }
  // Of the iteration so far: check it after the loop.
  absl::Status status() const;

 private:
  const std::string begin_, end_;
  const rocksdb::Slice lower_, upper_;
  std::unique_ptr<rocksdb::Iterator> iterator_;
};

// Thread-safe.
class RocksDbDatabase {
 public:
  // Errors of OpenRocksDbStore. The directory exists.
  static absl::StatusOr<std::unique_ptr<RocksDbDatabase>> Open(const std::string& directory,
                                                               const RocksDbOptions& options,
                                                               StoreEvents* events);
  // Flushes, so that the next Open has no log to replay.
  ~RocksDbDatabase();

  rocksdb::DB* db() { return db_.get(); }
  rocksdb::ColumnFamilyHandle* chunks() { return chunks_.get(); }

  // The value, or nothing where there is no such key. `snapshot` may be null.
  absl::StatusOr<std::optional<std::string>> Get(const std::string& key,
                                                 const rocksdb::Snapshot* snapshot);
  // Bytes as stored, unverified: the caller has a checksum. NOT_FOUND where there is no such chunk.
  absl::Status GetChunk(const std::string& key, const rocksdb::Snapshot* snapshot,
                        rocksdb::PinnableSlice* chunk);
  // UNAVAILABLE once a write has failed, naming that failure: for good. RESOURCE_EXHAUSTED after a
  // write that met a full disk, until there is space: then this call makes RocksDB go on.
  absl::Status CheckWritable();
  // `sync`: durable when this returns. A failure is reported as a fault.
  absl::Status Write(rocksdb::WriteBatch* batch, bool sync);
  // A file for the chunks of that state, not made yet. A failure of it goes to TakeFileFailure.
  std::unique_ptr<ChunkFile> NewChunkFile(std::string_view tenant, std::string_view state_id);
  absl::Status TakeFileFailure(const rocksdb::Status& status);
  // Whether files are taken: not while a copy is made, and not once writing has gone on after a
  // full disk, when RocksDB 7.8 would abort.
  bool CanTakeFiles() const ABSL_LOCKS_EXCLUDED(mutex_);
  // The finished files become part of the database, all or none: durable when this returns. False:
  // they are not taken just now.
  absl::StatusOr<bool> TakeChunkFiles(const std::vector<std::unique_ptr<ChunkFile>>& files);
  absl::StatusOr<uint64_t> FreeBytes() const;
  // RESOURCE_EXHAUSTED, naming both, where less than the reserve and `wanted_bytes` are free.
  absl::Status CheckSpace(uint64_t wanted_bytes) const;
  absl::Status Checkpoint(const std::string& directory);
  absl::StatusOr<BackupInfo> AddBackup(
      const std::string& directory, const std::function<void(uint64_t copied_bytes)>& on_progress);
  // Writes out what is in memory: the log is no longer needed.
  absl::Status Flush();
  // Flushes, and rewrites the blob files without what was deleted.
  absl::Status Compact();
  // Of the files that hold chunks, garbage included.
  uint64_t ChunkFileBytes() const;
  // RocksDB's sorted files now: names below the store's directory, and sizes.
  std::vector<std::pair<std::string, uint64_t>> TableFiles() const;
  // DATA_LOSS naming the file where a checksum of its blocks fails. OK where it is gone.
  absl::Status VerifyTableFile(const std::string& name) const;

 private:
  class Listener;

  // While it lives, no file is taken. RocksDB's copies have the files of one moment and the log of
  // a later one: a manifest in it must not need a file that came between.
  class Copying {
   public:
    explicit Copying(RocksDbDatabase* database);
    ~Copying();
    Copying(const Copying&) = delete;
    Copying& operator=(const Copying&) = delete;

   private:
    RocksDbDatabase* const database_;
  };

  RocksDbDatabase(const std::string& directory, const RocksDbOptions& options, StoreEvents* events);
  // What a failed write or background work means: nothing was there before, or it is the first.
  void TakeFailure(const rocksdb::Status& status, const absl::Status& fault)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Fault() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Resume() ABSL_LOCKS_EXCLUDED(mutex_);
  // A log whose last record may be torn must not be written to again, and RocksDB begins a new one,
  // on Resume, only with something in memory: so there always is.
  rocksdb::Status KeepResumable();
  bool CanTakeFilesNow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What a crash left of files that were never taken.
  void RemoveChunkFiles();
  absl::Status OpenDb(const std::string& directory, const RocksDbOptions& options);
  absl::Status CheckFormat(const std::string& directory);

  const std::string directory_;
  const uint64_t disk_reserve_bytes_;
  StoreEvents* const events_;
  const std::shared_ptr<WriteGuard> guard_;
  const std::unique_ptr<rocksdb::Env> env_;  // on guard_
  // Before db_, whose background work reports to it.
  mutable absl::Mutex mutex_;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);    // of the first write that failed for good
  bool is_full_ ABSL_GUARDED_BY(mutex_) = false;  // a write met a full disk
  bool is_resuming_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_resumed_ ABSL_GUARDED_BY(mutex_) = false;
  int num_taking_ ABSL_GUARDED_BY(mutex_) = 0;  // commits whose files are being taken
  int num_copies_ ABSL_GUARDED_BY(mutex_) = 0;  // Copying
  rocksdb::Options chunk_options_;              // of the files of chunks
  std::unique_ptr<rocksdb::DB> db_;
  // Declared after db_: handles go before the database.
  std::unique_ptr<rocksdb::ColumnFamilyHandle> default_;
  std::unique_ptr<rocksdb::ColumnFamilyHandle> chunks_;
};

// DATA_LOSS, RESOURCE_EXHAUSTED or UNAVAILABLE with RocksDB's own words after `what`.
absl::Status FromRocksDb(const rocksdb::Status& status, const std::string& what);

}  // namespace vivarium::statestore
