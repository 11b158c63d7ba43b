// WriteGuard: the file system under the store's RocksDB. It sees every write and sync of the
// store's files, those of background work too, and knows what the first failure was: after a failed
// sync, or a write that failed for another reason than a full disk, nothing is written any more.
#pragma once

#include <rocksdb/file_system.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace vivarium::statestore {

// Thread-safe. Files outside the store's directory (backups) pass unwatched.
class WriteGuard final : public rocksdb::FileSystemWrapper {
 public:
  enum class Health {
    kGood,
    // A write met a full disk. Nothing that was acknowledged is touched by that: writing may go on
    // in new files once there is space.
    kNoSpace,
    // After a failed sync nobody knows what is on disk, and a second sync that succeeds proves
    // nothing (Rebello et al. 2020, "Can Applications Recover from fsync Failures?").
    kBroken,
  };

  // `chunk_bytes`: of the store's chunks at most, as they lie in files.
  WriteGuard(const std::shared_ptr<rocksdb::FileSystem>& target, std::string directory,
             size_t chunk_bytes);

  const char* Name() const override { return "VivariumWriteGuard"; }

  Health health() const ABSL_LOCKS_EXCLUDED(mutex_);
  // The first failure's own words; "" where there was none.
  std::string first_failure() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Before a try to go on: from kNoSpace back to kGood. kBroken stays.
  void ForgetNoSpace() ABSL_LOCKS_EXCLUDED(mutex_);

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus ReopenWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                       std::unique_ptr<rocksdb::FSWritableFile>* file,
                                       rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus ReuseWritableFile(const std::string& name, const std::string& old_name,
                                      const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSWritableFile>* file,
                                      rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to,
                               const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* context) override;

 private:
  class File;
  class Directory;

  bool IsOurs(const std::string& name) const;
  // An error once broken.
  rocksdb::IOStatus Check() const ABSL_LOCKS_EXCLUDED(mutex_);
  // What a write, or a sync, answered: returned as it is.
  rocksdb::IOStatus Wrote(rocksdb::IOStatus status) ABSL_LOCKS_EXCLUDED(mutex_);
  rocksdb::IOStatus Synced(rocksdb::IOStatus status) ABSL_LOCKS_EXCLUDED(mutex_);
  rocksdb::IOStatus Guarded(rocksdb::IOStatus status, const std::string& name,
                            std::unique_ptr<rocksdb::FSWritableFile>* file);

  const std::string prefix_;  // of the store's own files
  const size_t chunk_bytes_;
  mutable absl::Mutex mutex_;
  Health health_ ABSL_GUARDED_BY(mutex_) = Health::kGood;
  std::string first_failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::statestore
