// What only the durable store does: opening, refusing to open, orphans, bounds, backup, faults.
#include "statestore/rocksdb_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "statestore/record_frame.h"
#include "statestore/rocksdb_keys.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

namespace fs = std::filesystem;

absl::Status TryOpen(const std::string& directory, const RocksDbOptions& options = SmallOptions()) {
  return OpenRocksDbStore(directory, options, absl::Now, nullptr).status();
}

TEST(RocksDbStore, TheDirectoryIsPrivate) {
  const TemporaryDirectory parent;
  const std::string directory = parent.Sub("a/b/store");
  EXPECT_TRUE(TryOpen(directory).ok());
  struct stat info;
  ASSERT_EQ(stat(directory.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  ASSERT_EQ(chmod(directory.c_str(), 0755), 0);
  EXPECT_TRUE(TryOpen(directory).ok());
  ASSERT_EQ(stat(directory.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST(RocksDbStore, ASecondOpenerIsTold) {
  StoreHarness harness(StoreKind::kRocksDb);
  const absl::Status status = TryOpen(harness.directory());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is open already"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(harness.directory()));
}

TEST(RocksDbStore, OnlyAStoreIsOpened) {
  const TemporaryDirectory parent;
  std::ofstream(parent.Sub("file")) << "x";
  EXPECT_EQ(TryOpen(parent.Sub("file")).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(TryOpen(parent.Sub("file/store")).code(), absl::StatusCode::kFailedPrecondition);
  rocksdb::Options foreign;
  foreign.create_if_missing = true;
  rocksdb::DB* db = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(foreign, parent.Sub("foreign"), &db).ok());
  ASSERT_TRUE(db->Put(rocksdb::WriteOptions(), "their", "data").ok());
  delete db;
  const absl::Status status = TryOpen(parent.Sub("foreign"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST(RocksDbStore, ANewerFormatIsNotTouched) {
  StoreHarness harness(StoreKind::kRocksDb);
  harness.Close();
  {
    RawRocksDb raw(harness.directory());
    raw.Put("v", Frame({"store format record", "VSTO", 2}, "news"), false);
  }
  const absl::Status status = TryOpen(harness.directory());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 2"));
  {
    RawRocksDb raw(harness.directory());
    raw.Put("v", "damaged beyond recognition", false);
  }
  EXPECT_EQ(TryOpen(harness.directory()).code(), absl::StatusCode::kDataLoss);
}

TEST(RocksDbStore, OptionsHaveTheirRange) {
  const TemporaryDirectory parent;
  const auto code_after = [&](auto change) {
    RocksDbOptions options = SmallOptions();
    change(options);
    return TryOpen(parent.Sub("store"), options).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code_after([](auto& o) { o.chunk_bytes = kMinChunkBytes - 1; }), kInvalid);
  EXPECT_EQ(code_after([](auto& o) { o.chunk_bytes = kMaxChunkBytes + 64; }), kInvalid);
  EXPECT_EQ(code_after([](auto& o) { o.chunk_bytes = 100; }), kInvalid);
  EXPECT_EQ(code_after([](auto& o) { o.max_requests_per_tenant = 0; }), kInvalid);
  EXPECT_EQ(code_after([](auto& o) { o.max_scanned_per_page = 0; }), kInvalid);
  EXPECT_EQ(code_after([](auto& o) { o.chunk_bytes = kMaxChunkBytes; }), absl::StatusCode::kOk);
}

TEST(RocksDbStore, OrphansOfACrashAreSweptAtOpen) {
  StoreHarness harness(StoreKind::kRocksDb);
  const SavedState kept = harness.Save(1);
  harness.Close();
  {
    // What a commit leaves that was cut off before its batch.
    RawRocksDb raw(harness.directory());
    raw.Put(Key(KeyKind::kIntent, kTenant, SampleId(2)), std::string("\5\0\0\0", 4), false);
    for (uint32_t i = 0; i < 3; ++i) raw.Put(ChunkKey(kTenant, SampleId(2), i), "half", true);
  }
  harness.Reopen();
  EXPECT_EQ(harness.events().num_orphan_chunks, 5u);
  ExpectSameState(*harness.store().Load(kTenant, SampleId(1)), kept);
  EXPECT_EQ(harness.store().Load(kTenant, SampleId(2)).status().code(),
            absl::StatusCode::kNotFound);
  harness.Close();
  RawRocksDb raw(harness.directory());
  EXPECT_THAT(raw.Keys("p/", false), IsEmpty());
  EXPECT_THAT(raw.Keys("", true), SizeIs(5));  // 1,152 bytes in chunks of 256
}

TEST(RocksDbStore, RefusedCommitsAndDeletionsLeaveNoKeys) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 3; ++i) harness.Save(i, i == 1 ? "" : SampleId(i - 1), "s");
  const SavedState refused = SampleState(SampleId(4), 4);
  Commit commit = CommitOf(refused);
  commit.head_move = Commit::HeadMove{"s", SampleId(4), "stale"};
  EXPECT_EQ(harness.store().Apply(commit).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(harness.store().DeleteSession(kTenant, "s", "").ok());
  for (uint64_t i = 1; i <= 3; ++i) {
    EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(i)).ok());
  }
  harness.Close();
  RawRocksDb raw(harness.directory());
  EXPECT_THAT(raw.Keys("", true), IsEmpty());
  EXPECT_THAT(raw.Keys("", false), ::testing::ElementsAre("k/default/", "v"));
}

TEST(RocksDbStore, FinishedRequestsAreBounded) {
  RocksDbOptions options = SmallOptions();
  options.max_requests_per_tenant = 32;
  StoreHarness harness(StoreKind::kRocksDb, options);
  const auto finish = [&](int number) {
    Commit commit;
    commit.tenant = kTenant;
    commit.request = RequestRecord{"r" + std::to_string(number), "h", "",
                                   harness.clock().Now() + absl::Hours(1) + absl::Seconds(number)};
    ASSERT_TRUE(harness.store().Apply(commit).ok());
  };
  const auto is_there = [&](int number) {
    return harness.store().GetRequest(kTenant, "r" + std::to_string(number)).ok();
  };
  for (int i = 0; i < 32; ++i) finish(i);
  EXPECT_TRUE(is_there(0));
  harness.Reopen();  // they are counted again
  finish(32);        // one past the bound: the first to expire go, a sixteenth with it
  EXPECT_FALSE(is_there(2));
  EXPECT_TRUE(is_there(3));
  EXPECT_TRUE(is_there(32));
  finish(33);
  EXPECT_TRUE(is_there(3));
}

TEST(RocksDbStore, APageLooksAtABoundedNumberOfStates) {
  RocksDbOptions options = SmallOptions();
  options.max_scanned_per_page = 4;
  StoreHarness harness(StoreKind::kRocksDb, options);
  for (uint64_t i = 1; i <= 10; ++i) harness.Save(i);
  // Of the session index nothing matches the label: pages come back empty, with a token.
  std::vector<StateId> found;
  std::string token;
  int num_pages = 0;
  do {
    const auto page = harness.store().ListStates(kTenant, WithDropped(), 100, token);
    ASSERT_TRUE(page.ok());
    EXPECT_LE(page->items.size(), 4u);
    for (const StateManifest& manifest : page->items) found.push_back(manifest.id);
    token = page->next_page_token;
    ++num_pages;
  } while (!token.empty());
  EXPECT_EQ(num_pages, 3);
  EXPECT_THAT(found, SizeIs(10));
}

TEST(RocksDbStore, AFullDiskIsSaidBeforeAnythingIsWritten) {
  RocksDbOptions options = SmallOptions();
  options.disk_reserve_bytes = uint64_t{1} << 60;
  StoreHarness harness(StoreKind::kRocksDb, options);
  const SavedState state = SampleState(SampleId(1), 1);
  EXPECT_EQ(harness.store().Apply(CommitOf(state)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(harness.events().num_faults, 0);
  EXPECT_EQ(harness.store().Stats()->num_manifests, 0u);
}

TEST(RocksDbStore, ABackupIsAStore) {
  StoreHarness harness(StoreKind::kRocksDb);
  std::vector<SavedState> saved;
  for (uint64_t i = 1; i <= 20; ++i) saved.push_back(harness.Save(i, "", "s"));
  const TemporaryDirectory parent;
  const std::string backup = parent.Sub("backup");
  ASSERT_TRUE(harness.store().Backup(backup).ok());
  EXPECT_EQ(harness.store().Backup(backup).code(), absl::StatusCode::kAlreadyExists);
  harness.Save(21);
  EXPECT_TRUE(harness.store().DeleteState(kTenant, SampleId(5)).ok());
  struct stat info;
  ASSERT_EQ(stat(backup.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  auto copy = OpenRocksDbStore(backup, SmallOptions(), absl::Now, nullptr);
  ASSERT_TRUE(copy.ok()) << copy.status();
  for (const SavedState& state : saved) {
    const absl::StatusOr<SavedState> found = (*copy)->Load(kTenant, state.manifest.id);
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectSameState(*found, state);
  }
  EXPECT_EQ((*copy)->Load(kTenant, SampleId(21)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*copy)->GetSession(kTenant, "s")->head, SampleId(20));
  EXPECT_FALSE(fs::exists(backup + ".making"));
  EXPECT_FALSE(harness.store().Backup("/proc/no/such/place").ok());
}

TEST(RocksDbStore, DiskBytesAreReal) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 200; ++i) harness.Save(i);
  const absl::StatusOr<StoreStats> stats = harness.store().Stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_GT(stats->disk_bytes, stats->live_bytes);
}

// Fails what it is told to, on files of the write-ahead log.
class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  using rocksdb::FileSystemWrapper::FileSystemWrapper;
  const char* Name() const override { return "FaultyFileSystem"; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status =
        rocksdb::FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (status.ok() && absl::EndsWith(name, ".log")) {
      *file = std::make_unique<File>(std::move(*file), this);
    }
    return status;
  }

  std::atomic<bool> fail_sync{false}, fail_append{false};
  std::atomic<int> num_failures{0};

 private:
  class File : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(std::unique_ptr<rocksdb::FSWritableFile> file, FaultyFileSystem* system)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* context) override {
      if (Fails(system_->fail_sync)) return rocksdb::IOStatus::IOError("injected sync failure");
      return FSWritableFileOwnerWrapper::Sync(options, context);
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override {
      if (Fails(system_->fail_append)) return rocksdb::IOStatus::NoSpace("injected full disk");
      return FSWritableFileOwnerWrapper::Append(data, options, context);
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             const rocksdb::DataVerificationInfo& info,
                             rocksdb::IODebugContext* context) override {
      if (Fails(system_->fail_append)) return rocksdb::IOStatus::NoSpace("injected full disk");
      return FSWritableFileOwnerWrapper::Append(data, options, info, context);
    }

   private:
    bool Fails(const std::atomic<bool>& armed) {
      if (armed) ++system_->num_failures;
      return armed;
    }
    FaultyFileSystem* const system_;
  };
};

struct FaultyEnv {
  std::shared_ptr<FaultyFileSystem> system =
      std::make_shared<FaultyFileSystem>(rocksdb::FileSystem::Default());
  std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(system);
  RocksDbOptions Options() const {
    RocksDbOptions options = SmallOptions();
    options.env = env.get();
    return options;
  }
};

TEST(RocksDbFaults, AFailedSyncStopsWritingForGood) {
  FaultyEnv faulty;
  StoreHarness harness(StoreKind::kRocksDb, faulty.Options());
  const SavedState before = harness.Save(1, "", "s");
  faulty.system->fail_sync = true;
  const SavedState failed = SampleState(SampleId(2), 2);
  Commit commit = CommitOf(failed);
  commit.head_move = Commit::HeadMove{"s", SampleId(2), "*"};
  EXPECT_EQ(harness.store().Apply(commit).code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(faulty.system->num_failures, 1);
  EXPECT_EQ(harness.events().num_faults, 1);
  // Nothing of it is visible, and reading goes on.
  EXPECT_EQ(harness.store().Load(kTenant, SampleId(2)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(harness.store().GetSession(kTenant, "s")->head, SampleId(1));
  ExpectSameState(*harness.store().Load(kTenant, SampleId(1)), before);
  // Also when the disk is well again: nobody knows what it holds.
  faulty.system->fail_sync = false;
  const SavedState later = SampleState(SampleId(3), 3);
  const absl::Status status = harness.store().Apply(CommitOf(later));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("injected sync failure"));
  EXPECT_EQ(harness.store().DeleteState(kTenant, SampleId(1)).code(),
            absl::StatusCode::kFailedPrecondition);  // still the head
  EXPECT_EQ(harness.store().DeleteSession(kTenant, "s", "").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(harness.store().UpdateState(kTenant, SampleId(1), {}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(harness.events().num_faults, 1);
  // A restart helps; the failed commit is whole or absent.
  harness.Reopen();
  ExpectSameState(*harness.store().Load(kTenant, SampleId(1)), before);
  const bool survived = harness.store().Load(kTenant, SampleId(2)).ok();
  EXPECT_EQ(harness.store().GetSession(kTenant, "s")->head, SampleId(survived ? 2 : 1));
  harness.Save(4);
}

TEST(RocksDbFaults, AFullDiskIsOverWhenThereIsSpace) {
  FaultyEnv faulty;
  StoreHarness harness(StoreKind::kRocksDb, faulty.Options());
  harness.Save(1);
  faulty.system->fail_append = true;
  const SavedState failed = SampleState(SampleId(2), 2);
  EXPECT_EQ(harness.store().Apply(CommitOf(failed)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(harness.store().Load(kTenant, SampleId(2)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(harness.store().Apply(CommitOf(failed)).code(), absl::StatusCode::kResourceExhausted);
  faulty.system->fail_append = false;
  EXPECT_TRUE(harness.store().Apply(CommitOf(failed)).ok());
  harness.Reopen();
  EXPECT_TRUE(harness.store().Load(kTenant, SampleId(1)).ok());
  EXPECT_TRUE(harness.store().Load(kTenant, SampleId(2)).ok());
}

}  // namespace
}  // namespace vivarium::statestore
