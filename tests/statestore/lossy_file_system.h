// LossyFileSystem: a file system that remembers what was synced, and at any moment can say what a
// power loss may leave. Of each file what was synced is sure. Of what was not, all may be gone
// (dropped), or what is behind some byte (torn), or any of its sectors (reordered: later ones are
// there, earlier ones are zeros; not within RocksDB's logs). Files lose independently of each
// other. Names that were made, linked, renamed or removed since the directory was synced are there
// in their order up to some point, and not from there on.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace vivarium::statestore {

// For one flat directory, all files of which were made through it. Thread-safe.
class LossyFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  // What has happened, or is about to.
  struct Moment {
    enum class Kind { kWrite, kBeforeSync, kAfterSync, kName };
    Kind kind;
    std::string
        file_kind;  // "log", "sst", "blob", "MANIFEST", "CURRENT", "chunks", "directory" ...
  };
  // Called at every moment, with the file system locked: true = a power loss, now.
  using Strikes = std::function<bool(const Moment& moment)>;
  // How often each kind of loss was among the losses so far.
  struct Losses {
    int num_dropped = 0, num_torn = 0, num_reordered = 0, num_lost_names = 0;
  };

  explicit LossyFileSystem(const std::shared_ptr<rocksdb::FileSystem>& target)
      : FileSystemWrapper(target) {}
  const char* Name() const override { return "LossyFileSystem"; }

  // From now on; null: never. Each loss is written to the new directory that `next_copy` names.
  void Arm(Strikes strikes, std::function<std::string()> next_copy, uint64_t seed);
  Losses losses() const;

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
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

 private:
  class File;
  class Directory;
  struct Content {
    std::string bytes;
    size_t num_synced_bytes = 0;
  };
  using Names = std::map<std::string, std::shared_ptr<Content>>;
  // A name that now means something else; null: nothing.
  struct NameChange {
    std::string name;
    std::shared_ptr<Content> content;
  };

  // All under mutex_.
  void Happens(Moment::Kind kind, const std::string& file_kind);
  void Change(std::vector<NameChange> changes);
  void Lose(const std::string& copy);
  std::string Left(const Content& content, bool may_be_reordered);

  mutable std::mutex mutex_;
  Names names_;                                   // as they are
  Names durable_names_;                           // as of the directory's last sync
  std::vector<std::vector<NameChange>> changes_;  // since then; each happens as a whole
  Strikes strikes_;
  std::function<std::string()> next_copy_;
  std::mt19937_64 random_;
  Losses losses_;
};

}  // namespace vivarium::statestore
