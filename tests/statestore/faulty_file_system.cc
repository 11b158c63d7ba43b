#include "tests/statestore/faulty_file_system.h"

#include <utility>

namespace vivarium::statestore {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

class FaultyFileSystem::WritableFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  WritableFile(std::unique_ptr<rocksdb::FSWritableFile> file, FaultyFileSystem* system)
      : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* context) override {
    if (IOStatus status = system_->Next(Operation::kWrite); !status.ok()) {
      return Torn(std::move(status), data, options, context);
    }
    return FSWritableFileOwnerWrapper::Append(data, options, context);
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info, IODebugContext* context) override {
    if (IOStatus status = system_->Next(Operation::kWrite); !status.ok()) {
      return Torn(std::move(status), data, options, context);
    }
    return FSWritableFileOwnerWrapper::Append(data, options, info, context);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* context) override {
    if (IOStatus status = system_->Next(Operation::kSync); !status.ok()) return status;
    return FSWritableFileOwnerWrapper::Sync(options, context);
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    if (IOStatus status = system_->Next(Operation::kSync); !status.ok()) return status;
    return FSWritableFileOwnerWrapper::Fsync(options, context);
  }

 private:
  // A write that failed may have written a part.
  IOStatus Torn(IOStatus status, const rocksdb::Slice& data, const IOOptions& options,
                IODebugContext* context) {
    const rocksdb::Slice part(data.data(), data.size() / 2);
    (void)FSWritableFileOwnerWrapper::Append(part, options, context).ok();
    return status;
  }

  FaultyFileSystem* const system_;
};

class FaultyFileSystem::SequentialFile : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  SequentialFile(std::unique_ptr<rocksdb::FSSequentialFile> file, FaultyFileSystem* system)
      : FSSequentialFileOwnerWrapper(std::move(file)), system_(system) {}
  IOStatus Read(size_t num_bytes, const IOOptions& options, rocksdb::Slice* result, char* scratch,
                IODebugContext* context) override {
    if (IOStatus status = system_->Next(Operation::kRead); !status.ok()) return status;
    return FSSequentialFileOwnerWrapper::Read(num_bytes, options, result, scratch, context);
  }

 private:
  FaultyFileSystem* const system_;
};

class FaultyFileSystem::RandomAccessFile : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  RandomAccessFile(std::unique_ptr<rocksdb::FSRandomAccessFile> file, FaultyFileSystem* system)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), system_(system) {}
  IOStatus Read(uint64_t offset, size_t num_bytes, const IOOptions& options, rocksdb::Slice* result,
                char* scratch, IODebugContext* context) const override {
    if (IOStatus status = system_->Next(Operation::kRead); !status.ok()) return status;
    return FSRandomAccessFileOwnerWrapper::Read(offset, num_bytes, options, result, scratch,
                                                context);
  }

 private:
  FaultyFileSystem* const system_;
};

class FaultyFileSystem::Directory : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(std::unique_ptr<rocksdb::FSDirectory> directory, FaultyFileSystem* system)
      : FSDirectoryWrapper(std::move(directory)), system_(system) {}
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* context,
                               const rocksdb::DirFsyncOptions& directory_options) override {
    if (IOStatus status = system_->Next(Operation::kSync); !status.ok()) return status;
    return FSDirectoryWrapper::FsyncWithDirOptions(options, context, directory_options);
  }

 private:
  FaultyFileSystem* const system_;
};

void FaultyFileSystem::Arm(Fault fault, int countdown) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fault_ = fault;
  countdown_ = countdown;
  num_operations_ = 0;
  has_struck_ = has_failed_a_sync_ = false;
}

void FaultyFileSystem::SetFreeBytes(uint64_t free_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_bytes_ = free_bytes;
}

bool FaultyFileSystem::has_struck() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return has_struck_;
}

bool FaultyFileSystem::has_failed_a_sync() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return has_failed_a_sync_;
}

int FaultyFileSystem::num_operations() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_operations_;
}

IOStatus FaultyFileSystem::Next(Operation operation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++num_operations_;
  const bool is_full_disk = fault_ == Fault::kFullDisk;
  if (fault_ == Fault::kNone || num_operations_ < countdown_) return IOStatus::OK();
  const bool takes_space = operation == Operation::kWrite;
  const bool is_turn = num_operations_ == countdown_;
  const bool fails = is_full_disk ? takes_space || (is_turn && operation == Operation::kSync)
                                  : is_turn || fault_ == Fault::kEioForGood;
  if (!fails) return IOStatus::OK();
  has_struck_ = true;
  if (operation == Operation::kSync) has_failed_a_sync_ = true;
  if (!is_full_disk) return IOStatus::IOError("injected EIO");
  IOStatus status = IOStatus::NoSpace("injected ENOSPC");
  status.SetRetryable(true);  // as RocksDB's own file system says
  return status;
}

IOStatus FaultyFileSystem::NewWritableFile(const std::string& name,
                                           const rocksdb::FileOptions& options,
                                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                                           IODebugContext* context) {
  if (IOStatus status = Next(Operation::kWrite); !status.ok()) return status;
  IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
  if (status.ok()) *file = std::make_unique<WritableFile>(std::move(*file), this);
  return status;
}

IOStatus FaultyFileSystem::NewSequentialFile(const std::string& name,
                                             const rocksdb::FileOptions& options,
                                             std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                             IODebugContext* context) {
  if (IOStatus status = Next(Operation::kRead); !status.ok()) return status;
  IOStatus status = FileSystemWrapper::NewSequentialFile(name, options, file, context);
  if (status.ok()) *file = std::make_unique<SequentialFile>(std::move(*file), this);
  return status;
}

IOStatus FaultyFileSystem::NewRandomAccessFile(const std::string& name,
                                               const rocksdb::FileOptions& options,
                                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                               IODebugContext* context) {
  if (IOStatus status = Next(Operation::kRead); !status.ok()) return status;
  IOStatus status = FileSystemWrapper::NewRandomAccessFile(name, options, file, context);
  if (status.ok()) *file = std::make_unique<RandomAccessFile>(std::move(*file), this);
  return status;
}

IOStatus FaultyFileSystem::NewDirectory(const std::string& name, const IOOptions& options,
                                        std::unique_ptr<rocksdb::FSDirectory>* directory,
                                        IODebugContext* context) {
  IOStatus status = FileSystemWrapper::NewDirectory(name, options, directory, context);
  if (status.ok()) *directory = std::make_unique<Directory>(std::move(*directory), this);
  return status;
}

IOStatus FaultyFileSystem::RenameFile(const std::string& from, const std::string& to,
                                      const IOOptions& options, IODebugContext* context) {
  if (IOStatus status = Next(Operation::kOther); !status.ok()) return status;
  return FileSystemWrapper::RenameFile(from, to, options, context);
}

IOStatus FaultyFileSystem::LinkFile(const std::string& from, const std::string& to,
                                    const IOOptions& options, IODebugContext* context) {
  if (IOStatus status = Next(Operation::kWrite); !status.ok()) return status;
  return FileSystemWrapper::LinkFile(from, to, options, context);
}

IOStatus FaultyFileSystem::DeleteFile(const std::string& name, const IOOptions& options,
                                      IODebugContext* context) {
  if (IOStatus status = Next(Operation::kOther); !status.ok()) return status;
  return FileSystemWrapper::DeleteFile(name, options, context);
}

IOStatus FaultyFileSystem::GetFreeSpace(const std::string& path, const IOOptions& options,
                                        uint64_t* free_bytes, IODebugContext* context) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool is_full = fault_ == Fault::kFullDisk && has_struck_;
    if (is_full || free_bytes_ != ~uint64_t{0}) {
      *free_bytes = is_full ? 0 : free_bytes_;
      return IOStatus::OK();
    }
  }
  return FileSystemWrapper::GetFreeSpace(path, options, free_bytes, context);
}

}  // namespace vivarium::statestore
