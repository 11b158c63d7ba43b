// kill -9 while a thread saves and thins: a new snapshot and the end of the old ones' bytes are
// one. VIVARIUM_THINNING_KILLS sets how many kills.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "tests/statestore/store_harness.h"
#include "tests/statestore/thinned_thread.h"
#include "tests/support/test_environment.h"

namespace vivarium::statestore {
namespace {

void RunAndKill(const std::string& directory, const std::string& log,
                std::chrono::microseconds duration) {
  const std::string writer = (test::ProgramDir() / "thinning_writer").string();
  const pid_t child = fork();
  if (child == 0) {
    // Only calls that are safe between fork and exec.
    execl(writer.c_str(), writer.c_str(), directory.c_str(), log.c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  std::this_thread::sleep_for(duration);
  ASSERT_EQ(kill(child, SIGKILL), 0);
  int wait_status = 0;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(wait_status)) << "the writer ended by itself: " << wait_status;
}

// The last number in the log; 0 = none. A line that was cut off was acknowledged, too.
uint64_t LastAcknowledged(const std::string& log) {
  std::ifstream file(log);
  uint64_t last = 0;
  for (uint64_t number = 0; file >> number;) last = number;
  return last;
}

// The thread's newest snapshot, or 0: it and those that it names have their bytes, and no other.
uint64_t CheckThread(StateStore& store) {
  const auto newest = store.ListStates(kTenant, {}, 1, "");
  EXPECT_TRUE(newest.ok()) << newest.status();
  if (!newest.ok() || newest->items.empty()) return 0;
  const uint64_t number = newest->items[0].position / kThreadEveryTokens;
  SavedState expected = ThreadSnapshot(number);
  expected.manifest.is_snapshot = true;
  expected.manifest.snapshots = newest->items[0].snapshots;
  const auto found = store.Load(kTenant, SampleId(number));
  EXPECT_TRUE(found.ok()) << found.status();
  if (found.ok()) ExpectSameState(*found, expected);
  for (const SnapshotRef& snapshot : newest->items[0].snapshots) {
    EXPECT_TRUE(store.Load(kTenant, snapshot.id).ok()) << "lost: " << snapshot.position;
  }
  const auto stats = store.Stats();
  EXPECT_TRUE(stats.ok());
  EXPECT_EQ(stats->num_states, newest->items[0].snapshots.size() + 1);
  EXPECT_EQ(stats->num_manifests, number);
  const auto chain = store.Ancestry(kTenant, SampleId(number), number + 1);
  EXPECT_TRUE(chain.ok() && chain->size() == number) << chain.status();
  return number;
}

TEST(ThinningKill, ASnapshotAndWhatItThinsAreOne) {
  const char* wanted = std::getenv("VIVARIUM_THINNING_KILLS");
  const int num_kills = wanted != nullptr ? std::atoi(wanted) : 20;
  const TemporaryDirectory parent;
  const std::string directory = parent.Sub("store");
  const std::string log = parent.Sub("log");
  std::mt19937_64 random(11);
  uint64_t last = 0;
  for (int i = 0; i < num_kills; ++i) {
    RunAndKill(directory, log, std::chrono::milliseconds(30 + random() % 120));
    auto store = OpenRocksDbStore(
        directory, SmallOptions(), [] { return absl::Now(); }, nullptr);
    ASSERT_TRUE(store.ok()) << store.status();
    const uint64_t number = CheckThread(**store);
    ASSERT_GE(number, LastAcknowledged(log));
    ASSERT_GE(number, last);
    last = number;
    ASSERT_FALSE(HasFailure()) << "kill " << i;
  }
  RecordProperty("snapshots", std::to_string(last));
  EXPECT_GT(last, static_cast<uint64_t>(num_kills));
}

}  // namespace
}  // namespace vivarium::statestore
