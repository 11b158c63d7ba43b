// Commits that are under way at the same time share their syncs.
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

// Counts syncs of the log; each takes as long as on a slow disk.
class SlowLogSyncs final : public rocksdb::FileSystemWrapper {
 public:
  SlowLogSyncs() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "SlowLogSyncs"; }
  int num_syncs() const { return num_syncs_; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (status.ok() && absl::EndsWith(name, ".log")) {
      *file = std::make_unique<Log>(std::move(*file), this);
    }
    return status;
  }

 private:
  class Log final : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    Log(std::unique_ptr<rocksdb::FSWritableFile> file, SlowLogSyncs* system)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* context) override {
      ++system_->num_syncs_;
      absl::SleepFor(absl::Milliseconds(5));
      return FSWritableFileOwnerWrapper::Sync(options, context);
    }

   private:
    SlowLogSyncs* const system_;
  };

  std::atomic<int> num_syncs_{0};
};

TEST(GroupCommit, ConcurrentCommitsShareTheirSyncs) {
  constexpr int kNumThreads = 8;
  constexpr int kNumPerThread = 10;
  const auto system = std::make_shared<SlowLogSyncs>();
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(system);
  RocksDbOptions options = SmallOptions();
  options.write_buffer_bytes = 16 << 20;  // no flush in between
  options.env = env.get();
  StoreHarness harness(StoreKind::kRocksDb, options);
  const int num_before = system->num_syncs();
  for (uint64_t i = 1; i <= kNumPerThread; ++i) harness.Save(i, "", "alone");
  EXPECT_EQ(system->num_syncs() - num_before, kNumPerThread) << "one commit, one sync";

  const int num_alone = system->num_syncs();
  std::vector<std::thread> threads;
  for (uint64_t t = 1; t <= kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kNumPerThread; ++i) {
        harness.Save(100 * t + i, "", "session" + std::to_string(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int num_together = system->num_syncs() - num_alone;
  RecordProperty("syncs", num_together);
  EXPECT_GE(num_together, kNumPerThread) << "each thread waits for its own";
  EXPECT_LT(num_together, kNumThreads * kNumPerThread / 2);
  EXPECT_EQ(harness.events().num_commits, kNumPerThread * (1 + kNumThreads));
  harness.Reopen();
  for (uint64_t t = 1; t <= kNumThreads; ++t) {
    EXPECT_TRUE(harness.store().VerifyState(kTenant, SampleId(100 * t)).ok());
  }
}

}  // namespace
}  // namespace vivarium::statestore
