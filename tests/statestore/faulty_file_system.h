// A file system whose n-th operation fails, with EIO once or from then on, or with a full disk
// until it is given space again. For RocksDB's files; its text log passes unseen.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

namespace vivarium::statestore {

class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  enum class Fault { kNone, kEioOnce, kEioForGood, kFullDisk };
  enum class Operation { kRead, kWrite, kSync, kOther };

  FaultyFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultyFileSystem"; }

  // The `countdown`-th operation from now on fails, 1 = the next. A full disk refuses from then on
  // what takes space, and a sync that is the countdown-th.
  void Arm(Fault fault, int countdown);
  void Heal() { Arm(Fault::kNone, 0); }
  // What free space is said to be; ~0 = the system's.
  void SetFreeBytes(uint64_t free_bytes);

  bool has_struck() const;
  bool has_failed_a_sync() const;  // since Arm
  int num_operations() const;      // since Arm

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                      rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to,
                               const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus LinkFile(const std::string& from, const std::string& to,
                             const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus GetFreeSpace(const std::string& path, const rocksdb::IOOptions& options,
                                 uint64_t* free_bytes, rocksdb::IODebugContext* context) override;

 private:
  class WritableFile;
  class SequentialFile;
  class RandomAccessFile;
  class Directory;

  // The error that this operation meets, if it is one's turn.
  rocksdb::IOStatus Next(Operation operation);

  mutable std::mutex mutex_;
  Fault fault_ = Fault::kNone;
  int countdown_ = 0;
  int num_operations_ = 0;
  bool has_struck_ = false;
  bool has_failed_a_sync_ = false;
  uint64_t free_bytes_ = ~uint64_t{0};
};

// The environment on it that RocksDbOptions takes.
struct FaultyEnv {
  std::shared_ptr<FaultyFileSystem> system = std::make_shared<FaultyFileSystem>();
  std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(system);
};

}  // namespace vivarium::statestore
