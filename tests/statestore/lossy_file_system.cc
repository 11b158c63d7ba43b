#include "tests/statestore/lossy_file_system.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <utility>

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

constexpr size_t kSectorBytes = 512;

// "/store/000012.sst" -> "sst"; "/store/MANIFEST-000004" -> "MANIFEST".
std::string KindOf(const std::string& name) {
  const std::string base = fs::path(name).filename();
  const size_t dot = base.rfind('.');
  if (dot != std::string::npos) return base.substr(dot + 1);
  return base.substr(0, base.find('-'));
}

// RocksDB takes zeros in its logs for room that was made in advance, skips them and goes on behind
// them: within one of them it needs what journalling file systems do, that a file that grows does
// so in order. Against all other files their parts too come in any order.
bool IsAppendOnly(const std::string& kind) { return kind == "log" || kind == "MANIFEST"; }

}  // namespace

class LossyFileSystem::File : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  File(std::unique_ptr<rocksdb::FSWritableFile> file, LossyFileSystem* system, std::string kind,
       std::shared_ptr<Content> content)
      : FSWritableFileOwnerWrapper(std::move(file)),
        system_(system),
        kind_(std::move(kind)),
        content_(std::move(content)) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(system_->mutex_);
    return Appended(FSWritableFileOwnerWrapper::Append(data, options, context), data);
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info, IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(system_->mutex_);
    return Appended(FSWritableFileOwnerWrapper::Append(data, options, info, context), data);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(system_->mutex_);
    system_->Happens(Moment::Kind::kBeforeSync, kind_);
    return Synced(FSWritableFileOwnerWrapper::Sync(options, context));
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(system_->mutex_);
    system_->Happens(Moment::Kind::kBeforeSync, kind_);
    return Synced(FSWritableFileOwnerWrapper::Fsync(options, context));
  }
  // A hint to begin writing: makes nothing sure. Not passed on: it would only cost time.
  IOStatus RangeSync(uint64_t /*offset*/, uint64_t /*num_bytes*/, const IOOptions& /*options*/,
                     IODebugContext* /*context*/) override {
    return IOStatus::OK();
  }

 private:
  IOStatus Appended(IOStatus status, const rocksdb::Slice& data) {
    if (status.ok()) content_->bytes.append(data.data(), data.size());
    system_->Happens(Moment::Kind::kWrite, kind_);
    return status;
  }
  IOStatus Synced(IOStatus status) {
    if (status.ok()) content_->num_synced_bytes = content_->bytes.size();
    system_->Happens(Moment::Kind::kAfterSync, kind_);
    return status;
  }

  LossyFileSystem* const system_;
  const std::string kind_;
  const std::shared_ptr<Content> content_;
};

class LossyFileSystem::Directory : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(std::unique_ptr<rocksdb::FSDirectory> directory, LossyFileSystem* system)
      : FSDirectoryWrapper(std::move(directory)), system_(system) {}

  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* context,
                               const rocksdb::DirFsyncOptions& how) override {
    const std::lock_guard<std::mutex> lock(system_->mutex_);
    system_->Happens(Moment::Kind::kBeforeSync, "directory");
    IOStatus status = FSDirectoryWrapper::FsyncWithDirOptions(options, context, how);
    if (status.ok()) {
      system_->durable_names_ = system_->names_;
      system_->changes_.clear();
    }
    system_->Happens(Moment::Kind::kAfterSync, "directory");
    return status;
  }

 private:
  LossyFileSystem* const system_;
};

void LossyFileSystem::Arm(Strikes strikes, std::function<std::string()> next_copy, uint64_t seed) {
  const std::lock_guard<std::mutex> lock(mutex_);
  strikes_ = std::move(strikes);
  next_copy_ = std::move(next_copy);
  random_.seed(seed);
}

LossyFileSystem::Losses LossyFileSystem::losses() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return losses_;
}

void LossyFileSystem::Happens(Moment::Kind kind, const std::string& file_kind) {
  if (strikes_ && strikes_({kind, file_kind})) Lose(next_copy_());
}

void LossyFileSystem::Change(std::vector<NameChange> changes) {
  for (const NameChange& change : changes) {
    if (change.content != nullptr) {
      names_[change.name] = change.content;
    } else {
      names_.erase(change.name);
    }
  }
  const std::string kind = KindOf(changes.back().name);
  changes_.push_back(std::move(changes));
  Happens(Moment::Kind::kName, kind);
}

void LossyFileSystem::Lose(const std::string& copy) {
  Names left = durable_names_;
  const size_t num_kept = random_() % 3 == 0 ? 0 : random_() % (changes_.size() + 1);
  if (num_kept < changes_.size()) ++losses_.num_lost_names;
  for (size_t i = 0; i < num_kept; ++i) {
    for (const NameChange& change : changes_[i]) {
      if (change.content != nullptr) {
        left[change.name] = change.content;
      } else {
        left.erase(change.name);
      }
    }
  }
  // One file may have several names.
  std::map<const Content*, std::string> bytes;
  fs::create_directory(copy);
  for (const auto& [name, content] : left) {
    const auto [found, is_new] = bytes.try_emplace(content.get());
    if (is_new) found->second = Left(*content, !IsAppendOnly(KindOf(name)));
    std::ofstream(fs::path(copy) / fs::path(name).filename(), std::ios::binary) << found->second;
  }
}

std::string LossyFileSystem::Left(const Content& content, bool may_be_reordered) {
  const size_t num_synced = content.num_synced_bytes;
  const size_t num_unsynced = content.bytes.size() - num_synced;
  const uint64_t choice = random_() % (may_be_reordered ? 5 : 3);
  if (num_unsynced == 0 || choice == 0) return content.bytes;
  if (choice == 1) {
    ++losses_.num_dropped;
    return content.bytes.substr(0, num_synced);
  }
  if (choice == 2) {
    const size_t num_kept = random_() % num_unsynced;
    if (num_kept > 0) ++losses_.num_torn;
    return content.bytes.substr(0, num_synced + num_kept);
  }
  std::string left = content.bytes;
  size_t end = num_synced;
  bool has_hole = false;
  bool is_reordered = false;
  for (size_t begin = num_synced; begin < left.size();) {
    const size_t next = std::min(left.size(), (begin / kSectorBytes + 1) * kSectorBytes);
    if (random_() % 2 == 0) {
      is_reordered = is_reordered || has_hole;
      end = next;
    } else {
      has_hole = true;
      std::fill(left.begin() + static_cast<ptrdiff_t>(begin),
                left.begin() + static_cast<ptrdiff_t>(next), '\0');
    }
    begin = next;
  }
  left.resize(end);
  losses_.num_reordered += is_reordered ? 1 : 0;
  return left;
}

IOStatus LossyFileSystem::NewWritableFile(const std::string& name,
                                          const rocksdb::FileOptions& options,
                                          std::unique_ptr<rocksdb::FSWritableFile>* file,
                                          IODebugContext* context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
  if (!status.ok()) return status;
  const auto content = std::make_shared<Content>();
  *file = std::make_unique<File>(std::move(*file), this, KindOf(name), content);
  Change({{name, content}});
  return status;
}

IOStatus LossyFileSystem::NewDirectory(const std::string& name, const IOOptions& options,
                                       std::unique_ptr<rocksdb::FSDirectory>* directory,
                                       IODebugContext* context) {
  IOStatus status = FileSystemWrapper::NewDirectory(name, options, directory, context);
  if (status.ok()) *directory = std::make_unique<Directory>(std::move(*directory), this);
  return status;
}

IOStatus LossyFileSystem::RenameFile(const std::string& from, const std::string& to,
                                     const IOOptions& options, IODebugContext* context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  IOStatus status = FileSystemWrapper::RenameFile(from, to, options, context);
  if (status.ok() && names_.contains(from)) Change({{from, nullptr}, {to, names_[from]}});
  return status;
}

IOStatus LossyFileSystem::LinkFile(const std::string& from, const std::string& to,
                                   const IOOptions& options, IODebugContext* context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  IOStatus status = FileSystemWrapper::LinkFile(from, to, options, context);
  if (status.ok() && names_.contains(from)) Change({{to, names_[from]}});
  return status;
}

IOStatus LossyFileSystem::DeleteFile(const std::string& name, const IOOptions& options,
                                     IODebugContext* context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  IOStatus status = FileSystemWrapper::DeleteFile(name, options, context);
  if (status.ok() && names_.contains(name)) Change({{name, nullptr}});
  return status;
}

}  // namespace vivarium::statestore
