#include "statestore/rocksdb_write_guard.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "statestore/rocksdb_chunk_file.h"

namespace vivarium::statestore {

namespace {
// Of a chunk file's index and what else stands at its end: that of ten thousand chunks.
constexpr size_t kIndexBytes = size_t{1} << 20;
}  // namespace

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

class WriteGuard::File final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  File(std::unique_ptr<rocksdb::FSWritableFile> file, WriteGuard* guard)
      : FSWritableFileOwnerWrapper(std::move(file)), guard_(guard) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Wrote(FSWritableFileOwnerWrapper::Append(data, options, context));
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info, IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Wrote(FSWritableFileOwnerWrapper::Append(data, options, info, context));
  }
  IOStatus PositionedAppend(const rocksdb::Slice& data, uint64_t offset, const IOOptions& options,
                            IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Wrote(
        FSWritableFileOwnerWrapper::PositionedAppend(data, offset, options, context));
  }
  IOStatus PositionedAppend(const rocksdb::Slice& data, uint64_t offset, const IOOptions& options,
                            const rocksdb::DataVerificationInfo& info,
                            IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Wrote(
        FSWritableFileOwnerWrapper::PositionedAppend(data, offset, options, info, context));
  }
  IOStatus Flush(const IOOptions& options, IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Wrote(FSWritableFileOwnerWrapper::Flush(options, context));
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Synced(FSWritableFileOwnerWrapper::Sync(options, context));
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Synced(FSWritableFileOwnerWrapper::Fsync(options, context));
  }
  IOStatus RangeSync(uint64_t offset, uint64_t num_bytes, const IOOptions& options,
                     IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Synced(
        FSWritableFileOwnerWrapper::RangeSync(offset, num_bytes, options, context));
  }
  // Some file systems tell of lost writes only here.
  IOStatus Close(const IOOptions& options, IODebugContext* context) override {
    return guard_->Synced(FSWritableFileOwnerWrapper::Close(options, context));
  }

 private:
  WriteGuard* const guard_;
};

class WriteGuard::Directory final : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(std::unique_ptr<rocksdb::FSDirectory> directory, WriteGuard* guard)
      : FSDirectoryWrapper(std::move(directory)), guard_(guard) {}

  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Synced(FSDirectoryWrapper::Fsync(options, context));
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* context,
                               const rocksdb::DirFsyncOptions& directory_options) override {
    if (IOStatus status = guard_->Check(); !status.ok()) return status;
    return guard_->Synced(
        FSDirectoryWrapper::FsyncWithDirOptions(options, context, directory_options));
  }

 private:
  WriteGuard* const guard_;
};

WriteGuard::WriteGuard(const std::shared_ptr<rocksdb::FileSystem>& target, std::string directory,
                       size_t chunk_bytes)
    : FileSystemWrapper(target), prefix_(std::move(directory)), chunk_bytes_(chunk_bytes) {}

WriteGuard::Health WriteGuard::health() const {
  absl::MutexLock lock(&mutex_);
  return health_;
}

std::string WriteGuard::first_failure() const {
  absl::MutexLock lock(&mutex_);
  return first_failure_;
}

void WriteGuard::ForgetNoSpace() {
  absl::MutexLock lock(&mutex_);
  if (health_ != Health::kNoSpace) return;
  health_ = Health::kGood;
  first_failure_.clear();
}

bool WriteGuard::IsOurs(const std::string& name) const {
  return absl::StartsWith(name, prefix_) &&
         (name.size() == prefix_.size() || name[prefix_.size()] == '/');
}

IOStatus WriteGuard::Check() const {
  absl::MutexLock lock(&mutex_);
  if (health_ != Health::kBroken) return IOStatus::OK();
  return IOStatus::IOError("nothing is written after " + first_failure_);
}

IOStatus WriteGuard::Wrote(IOStatus status) {
  if (status.ok() || status.IsNotSupported()) return status;
  absl::MutexLock lock(&mutex_);
  const Health found = status.IsNoSpace() ? Health::kNoSpace : Health::kBroken;
  if (found > health_) {
    health_ = found;
    first_failure_ = status.ToString();
  }
  return status;
}

IOStatus WriteGuard::Synced(IOStatus status) {
  if (status.ok() || status.IsNotSupported()) return status;
  absl::MutexLock lock(&mutex_);
  if (health_ != Health::kBroken) {
    health_ = Health::kBroken;
    first_failure_ = absl::StrCat("a failed sync: ", status.ToString());
  }
  return status;
}

IOStatus WriteGuard::Guarded(IOStatus status, const std::string& name,
                             std::unique_ptr<rocksdb::FSWritableFile>* file) {
  if (!IsOurs(name)) return status;
  status = Wrote(std::move(status));
  if (status.ok()) *file = std::make_unique<File>(std::move(*file), this);
  return status;
}

IOStatus WriteGuard::NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                     std::unique_ptr<rocksdb::FSWritableFile>* file,
                                     IODebugContext* context) {
  return Guarded(FileSystemWrapper::NewWritableFile(name, options, file, context), name, file);
}

IOStatus WriteGuard::ReopenWritableFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSWritableFile>* file,
                                        IODebugContext* context) {
  // Asked for only to sync a table file that was written elsewhere once more; ours are synced.
  if (IsOurs(name) && absl::EndsWith(name, ".sst")) return IOStatus::NotSupported();
  return Guarded(FileSystemWrapper::ReopenWritableFile(name, options, file, context), name, file);
}

IOStatus WriteGuard::ReuseWritableFile(const std::string& name, const std::string& old_name,
                                       const rocksdb::FileOptions& options,
                                       std::unique_ptr<rocksdb::FSWritableFile>* file,
                                       IODebugContext* context) {
  return Guarded(FileSystemWrapper::ReuseWritableFile(name, old_name, options, file, context), name,
                 file);
}

IOStatus WriteGuard::NewDirectory(const std::string& name, const IOOptions& options,
                                  std::unique_ptr<rocksdb::FSDirectory>* directory,
                                  IODebugContext* context) {
  IOStatus status = FileSystemWrapper::NewDirectory(name, options, directory, context);
  if (status.ok() && IsOurs(name)) {
    *directory = std::make_unique<Directory>(std::move(*directory), this);
  }
  return status;
}

IOStatus WriteGuard::RenameFile(const std::string& from, const std::string& to,
                                const IOOptions& options, IODebugContext* context) {
  if (!IsOurs(to)) return FileSystemWrapper::RenameFile(from, to, options, context);
  if (IOStatus status = Check(); !status.ok()) return status;
  return Wrote(FileSystemWrapper::RenameFile(from, to, options, context));
}

IOStatus WriteGuard::NewRandomAccessFile(const std::string& name,
                                         const rocksdb::FileOptions& options,
                                         std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                         IODebugContext* context) {
  IOStatus status = FileSystemWrapper::NewRandomAccessFile(name, options, file, context);
  if (!status.ok() || !IsOurs(name) || !IsChunkFileName(name)) return status;
  uint64_t file_bytes = 0;
  status = FileSystemWrapper::GetFileSize(name, IOOptions(), &file_bytes, context);
  if (!status.ok()) return status;
  return OpenWithEdges(std::move(*file), file_bytes, chunk_bytes_ + kIndexBytes, file);
}

// RocksDB 7.8 removes a file that it took when it could not sync MANIFEST, which may name it all
// the same: then the store could not be opened again. Opening removes what nobody names.
IOStatus WriteGuard::DeleteFile(const std::string& name, const IOOptions& options,
                                IODebugContext* context) {
  if (IsOurs(name) && absl::EndsWith(name, ".sst") && health() != Health::kGood) {
    return IOStatus::IOError(name + " is kept: a write has failed, and nobody knows who names it");
  }
  return FileSystemWrapper::DeleteFile(name, options, context);
}

}  // namespace vivarium::statestore
