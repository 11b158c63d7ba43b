// CountingFileSystem: the system's files, with a count of what RocksDB appends and syncs: what a
// commit costs the disk.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace vivarium::bench {

// Thread-safe.
class CountingFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  CountingFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "CountingFileSystem"; }

  uint64_t appended_bytes() const { return appended_bytes_; }
  uint64_t num_syncs() const { return num_syncs_; }  // of files and of directories

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (status.ok()) *file = std::make_unique<File>(std::move(*file), this);
    return status;
  }
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = FileSystemWrapper::NewDirectory(name, options, directory, context);
    if (status.ok()) *directory = std::make_unique<Directory>(std::move(*directory), this);
    return status;
  }

 private:
  class File final : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(std::unique_ptr<rocksdb::FSWritableFile> file, CountingFileSystem* system)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override {
      system_->appended_bytes_ += data.size();
      return FSWritableFileOwnerWrapper::Append(data, options, context);
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             const rocksdb::DataVerificationInfo& info,
                             rocksdb::IODebugContext* context) override {
      system_->appended_bytes_ += data.size();
      return FSWritableFileOwnerWrapper::Append(data, options, info, context);
    }
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* context) override {
      ++system_->num_syncs_;
      return FSWritableFileOwnerWrapper::Sync(options, context);
    }
    rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options,
                            rocksdb::IODebugContext* context) override {
      ++system_->num_syncs_;
      return FSWritableFileOwnerWrapper::Fsync(options, context);
    }

   private:
    CountingFileSystem* const system_;
  };

  class Directory final : public rocksdb::FSDirectoryWrapper {
   public:
    Directory(std::unique_ptr<rocksdb::FSDirectory> directory, CountingFileSystem* system)
        : FSDirectoryWrapper(std::move(directory)), system_(system) {}
    rocksdb::IOStatus FsyncWithDirOptions(const rocksdb::IOOptions& options,
                                          rocksdb::IODebugContext* context,
                                          const rocksdb::DirFsyncOptions& how) override {
      ++system_->num_syncs_;
      return FSDirectoryWrapper::FsyncWithDirOptions(options, context, how);
    }

   private:
    CountingFileSystem* const system_;
  };

  std::atomic<uint64_t> appended_bytes_{0}, num_syncs_{0};
};

// The environment on it that RocksDbOptions takes.
struct CountingEnv {
  std::shared_ptr<CountingFileSystem> system = std::make_shared<CountingFileSystem>();
  std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(system);
};

}  // namespace vivarium::bench
