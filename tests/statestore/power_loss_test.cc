// Power loss: of every file only what was synced is sure to be there, and of the rest any first
// part may be, in any combination. What was acknowledged must be among what is sure.
// VIVARIUM_POWER_LOSSES sets how many.
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/statestore/export_files.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

// Writes through, and remembers how much of each file was appended, and synced.
class TrackingFileSystem : public rocksdb::FileSystemWrapper {
 public:
  using rocksdb::FileSystemWrapper::FileSystemWrapper;
  const char* Name() const override { return "TrackingFileSystem"; }

  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (!status.ok()) return status;
    sizes_[name] = std::make_shared<Sizes>();
    *file = std::make_unique<File>(std::move(*file), this, sizes_[name]);
    return status;
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    IOStatus status = FileSystemWrapper::RenameFile(from, to, options, context);
    if (status.ok() && sizes_.contains(from)) {
      sizes_[to] = sizes_[from];
      sizes_.erase(from);
    }
    return status;
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions& options,
                      IODebugContext* context) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    sizes_.erase(name);
    return FileSystemWrapper::DeleteFile(name, options, context);
  }

  // At the `countdown`-th write from now on, a power loss: `copy` becomes what it may leave of
  // `directory`.
  void Arm(const std::string& directory, const std::string& copy, int countdown, uint64_t seed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    directory_ = directory;
    copy_ = copy;
    countdown_ = countdown;
    random_.seed(seed);
  }
  bool has_struck() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return countdown_ == 0;
  }
  // Files that lost bytes, in all losses so far.
  int num_torn() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return num_torn_;
  }

 private:
  struct Sizes {
    uint64_t appended_bytes = 0;
    uint64_t synced_bytes = 0;
  };

  // Under mutex_.
  void Strike() {
    fs::create_directory(copy_);
    for (const fs::directory_entry& entry : fs::directory_iterator(directory_)) {
      std::string bytes = ReadFile(entry.path());
      if (const auto found = sizes_.find(entry.path()); found != sizes_.end()) {
        const Sizes& sizes = *found->second;
        const uint64_t unsynced_bytes = sizes.appended_bytes - sizes.synced_bytes;
        const uint64_t kept_bytes = random_() % 2 == 0 ? 0 : random_() % (unsynced_bytes + 1);
        bytes.resize(sizes.synced_bytes + kept_bytes);
        num_torn_ += kept_bytes < unsynced_bytes ? 1 : 0;
      }
      std::ofstream(fs::path(copy_) / entry.path().filename(), std::ios::binary) << bytes;
    }
  }

  class File : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(std::unique_ptr<rocksdb::FSWritableFile> file, TrackingFileSystem* system,
         std::shared_ptr<Sizes> sizes)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system), sizes_(std::move(sizes)) {}

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
      return Synced(FSWritableFileOwnerWrapper::Sync(options, context));
    }
    IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
      return Synced(FSWritableFileOwnerWrapper::Fsync(options, context));
    }

   private:
    IOStatus Appended(IOStatus status, const rocksdb::Slice& data) {
      if (status.ok()) sizes_->appended_bytes += data.size();
      if (system_->countdown_ > 0 && --system_->countdown_ == 0) system_->Strike();
      return status;
    }
    IOStatus Synced(IOStatus status) {
      const std::lock_guard<std::mutex> lock(system_->mutex_);
      if (status.ok()) sizes_->synced_bytes = sizes_->appended_bytes;
      return status;
    }

    TrackingFileSystem* const system_;
    const std::shared_ptr<Sizes> sizes_;
  };

  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Sizes>> sizes_;
  std::string directory_, copy_;
  int countdown_ = 0;
  int num_torn_ = 0;
  std::mt19937_64 random_;
};

class PowerLoss {
 public:
  explicit PowerLoss(uint64_t seed) : random_(seed) {}

  // Saves and deletes until the power goes, in the middle of something; checks what is left.
  void LoseAndCheck() {
    const TemporaryDirectory parent;
    const std::string copy = parent.Sub("copy");
    system_->Arm(harness_.directory(), copy, static_cast<int>(1 + random_() % 200), random_());
    uint64_t saving = 0;
    uint64_t deleting = 0;
    uint64_t head_before = head_;
    while (!system_->has_struck()) {
      saving = deleting = 0;
      head_before = head_;
      Step(&saving, &deleting);
      ASSERT_FALSE(::testing::Test::HasFailure());
    }
    auto store = OpenRocksDbStore(copy, SmallOptions(), harness_.clock().AsClock(), nullptr);
    ASSERT_TRUE(store.ok()) << store.status();
    // The last operation was not acknowledged when the power went: it is there whole, or not.
    uint64_t num_states = 0;
    for (uint64_t number = 1; number < next_; ++number) {
      const bool may_be = alive_.contains(number) || number == deleting;
      const bool must_be = alive_.contains(number) && number != saving;
      const absl::StatusOr<SavedState> found = (*store)->Load(kTenant, SampleId(number));
      ASSERT_TRUE(found.ok() || absl::IsNotFound(found.status())) << found.status();
      ASSERT_TRUE(found.ok() || !must_be) << "lost: " << number;
      ASSERT_TRUE(!found.ok() || may_be) << "came back: " << number;
      if (!found.ok()) continue;
      ++num_states;
      SavedState expected = SampleState(SampleId(number), number);
      expected.manifest.session = "s";
      ExpectSameState(*found, expected);
    }
    EXPECT_EQ((*store)->Stats()->num_states, num_states);
    const bool moved = saving != 0 && (*store)->Load(kTenant, SampleId(saving)).ok();
    const uint64_t head = saving == 0 || moved ? head_ : head_before;
    const absl::StatusOr<Session> session = (*store)->GetSession(kTenant, "s");
    ASSERT_EQ(session.ok(), head != 0);
    if (head != 0) {
      EXPECT_EQ(session->head, SampleId(head));
    }
  }

  int num_torn() { return system_->num_torn(); }

 private:
  void Step(uint64_t* saving, uint64_t* deleting) {
    if (alive_.size() < 2 || random_() % 4 != 0) {
      *saving = next_++;
      harness_.Save(*saving, "", "s");
      alive_.insert(*saving);
      head_ = *saving;
      return;
    }
    *deleting = *alive_.begin();  // not the head, which is the last
    ASSERT_TRUE(harness_.store().DeleteState(kTenant, SampleId(*deleting)).ok());
    alive_.erase(*deleting);
  }

  RocksDbOptions Options() {
    RocksDbOptions options = SmallOptions();
    options.write_buffer_bytes = 64 << 10;  // flushes on the way
    options.env = env_.get();
    return options;
  }

  std::mt19937_64 random_;
  std::shared_ptr<TrackingFileSystem> system_ =
      std::make_shared<TrackingFileSystem>(rocksdb::FileSystem::Default());
  std::unique_ptr<rocksdb::Env> env_ = rocksdb::NewCompositeEnv(system_);
  StoreHarness harness_{StoreKind::kRocksDb, Options()};
  uint64_t next_ = 1;
  uint64_t head_ = 0;
  std::set<uint64_t> alive_;
};

TEST(PowerLoss, NothingAcknowledgedIsLost) {
  const char* wanted = std::getenv("VIVARIUM_POWER_LOSSES");
  const int num_losses = wanted != nullptr ? std::atoi(wanted) : 100;
  constexpr int kLossesPerStore = 10;
  std::mt19937_64 random(3);
  int num_torn = 0;
  for (int begin = 0; begin < num_losses; begin += kLossesPerStore) {
    PowerLoss store(random());
    for (int loss = begin; loss < std::min(begin + kLossesPerStore, num_losses); ++loss) {
      store.LoseAndCheck();
      ASSERT_FALSE(HasFailure()) << "loss " << loss;
    }
    num_torn += store.num_torn();
  }
  EXPECT_GT(num_torn, num_losses / 4);  // the losses did lose something
}

}  // namespace
}  // namespace vivarium::statestore
