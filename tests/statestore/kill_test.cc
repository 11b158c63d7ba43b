// kill -9 at random points, under saves, forks, deletions, head moves, sweeps and backups: what was
// acknowledged is there, bit for bit; what was not is there as a whole or not at all; backups that
// were acknowledged open and verify. VIVARIUM_KILL_ROUNDS sets how many kills.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/statestore/kill_script.h"
#include "tests/statestore/state_samples.h"
#include "tests/support/test_environment.h"

namespace vivarium::statestore {
namespace {

// A backup of either kind that was acknowledged.
struct AcknowledgedBackup {
  KillOperation operation;
  std::map<uint64_t, uint64_t>
      must_have;                     // saved before it began, no deletion begun before its end
  std::set<uint64_t> must_not_have;  // their deletion was acknowledged before it began
};

// What is known of the states of one directory.
struct Books {
  std::map<uint64_t, uint64_t> saved;         // acknowledged, not deleted: number -> parent
  std::map<uint64_t, uint64_t> parents;       // of all that were ever begun
  std::set<uint64_t> deleted;                 // acknowledged
  std::map<std::string, uint64_t> heads;      // acknowledged: session -> number
  std::vector<KillOperation> unacknowledged;  // of the last run: may be there, whole, or not
  std::vector<AcknowledgedBackup> backups;    // of the last run
  size_t num_backups_in_set = 0;              // that earlier runs left, acknowledged or not
};

// What all rounds together came to.
struct Totals {
  std::atomic<int> acknowledged{0}, cut_off{0}, checkpoints{0}, backups{0};
};

bool IsBackup(const KillOperation& operation) {
  return operation.kind == "checkpoint" || operation.kind == "backup";
}

KillOperation ParseOperation(std::istringstream& line) {
  KillOperation operation;
  line >> operation.kind >> operation.number;
  if (operation.kind == "save") line >> operation.parent;
  if (operation.kind == "save" || operation.kind == "move") line >> operation.session;
  return operation;
}

void Acknowledge(const KillOperation& operation, Books& books) {
  if (operation.kind == "save") {
    books.saved[operation.number] = operation.parent;
    if (operation.session != "-") books.heads[operation.session] = operation.number;
  } else if (operation.kind == "move") {
    books.heads[operation.session] = operation.number;
  } else if (operation.kind == "delete") {
    books.saved.erase(operation.number);
    books.deleted.insert(operation.number);
  }
}

// Enters what a writer said into the books. Returns how many operations were acknowledged.
int ReadLines(const std::string& text, Books& books) {
  std::map<std::string, KillOperation> begun;
  std::map<std::string, AcknowledgedBackup> begun_backups;
  int num_acknowledged = 0;
  books.backups.clear();
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_NE(line[0], '!') << "the writer failed: " << line;
    const std::string words = line.substr(2);
    std::istringstream fields(words);
    const KillOperation operation = ParseOperation(fields);
    if (line[0] == '+') {
      begun[words] = operation;
      if (operation.kind == "save") books.parents[operation.number] = operation.parent;
      if (operation.kind == "delete") {
        for (auto& [unused, backup] : begun_backups) backup.must_have.erase(operation.number);
      }
      if (IsBackup(operation)) begun_backups[words] = {operation, books.saved, books.deleted};
      // One whose deletion was cut off has settled; one whose deletion is under way is not sure.
      for (const auto& [unused, other] : begun) {
        if (other.kind == "delete" && IsBackup(operation)) {
          begun_backups[words].must_have.erase(other.number);
        }
      }
    }
    if (line[0] != '=') continue;
    begun.erase(words);
    Acknowledge(operation, books);
    if (IsBackup(operation)) books.backups.push_back(begun_backups[words]);
    begun_backups.erase(words);
    num_acknowledged += operation.kind == "ready" ? 0 : 1;
  }
  books.unacknowledged.clear();
  for (const auto& [unused, operation] : begun) {
    if (operation.kind != "ready") books.unacknowledged.push_back(operation);
  }
  return num_acknowledged;
}

// When to kill: `delay` after the writer has said `num_lines` lines, or after its start.
struct KillPoint {
  size_t num_lines = 0;
  std::chrono::microseconds delay{0};
};

// Runs the writer and kills it; gives what it said.
std::string RunAndKill(const std::string& directory, uint64_t first_number, uint64_t seed,
                       const KillPoint& point) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const std::string number = std::to_string(first_number);
  const std::string seed_text = std::to_string(seed);
  const std::string writer = (test::ProgramDir() / "kill_writer").string();
  const pid_t child = fork();
  if (child == 0) {
    // Only calls that are safe between fork and exec.
    dup2(ends[1], STDOUT_FILENO);
    execl(writer.c_str(), writer.c_str(), directory.c_str(), number.c_str(), seed_text.c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  std::string text;
  std::promise<void> has_said_enough;
  std::thread reader([&] {
    char buffer[4096];
    size_t num_missing = point.num_lines;
    for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(n));
      if (num_missing == 0) continue;
      num_missing -=
          std::min(num_missing, static_cast<size_t>(std::count(buffer, buffer + n, '\n')));
      if (num_missing == 0) has_said_enough.set_value();
    }
  });
  if (point.num_lines > 0) {
    EXPECT_EQ(has_said_enough.get_future().wait_for(std::chrono::seconds(60)),
              std::future_status::ready);
  }
  std::this_thread::sleep_for(point.delay);
  EXPECT_EQ(kill(child, SIGKILL), 0);
  int wait_status = 0;
  EXPECT_EQ(waitpid(child, &wait_status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(wait_status)) << "the writer ended by itself";
  reader.join();
  close(ends[0]);
  return text;
}

SavedState Expected(uint64_t number, uint64_t parent) {
  SavedState state = MixedSampleState(number);
  if (parent != 0) state.manifest.parent_id = SampleId(parent);
  return state;
}

// Settles what the unacknowledged operations came to, and checks that each is whole: a state and
// its head move are one.
void Settle(StateStore& store, Books& books) {
  for (const KillOperation& operation : books.unacknowledged) {
    if (IsBackup(operation)) continue;
    if (operation.kind == "move") {
      const absl::StatusOr<Session> found = store.GetSession(kTenant, operation.session);
      if (found.ok() && found->head == SampleId(operation.number)) Acknowledge(operation, books);
      continue;
    }
    const absl::StatusOr<SavedState> found = store.Load(kTenant, SampleId(operation.number));
    if (!found.ok()) {
      ASSERT_EQ(found.status().code(), absl::StatusCode::kNotFound) << found.status();
    }
    if (found.ok() == (operation.kind == "save")) Acknowledge(operation, books);
  }
}

void CheckBooks(StateStore& store, const Books& books) {
  for (const auto& [number, parent] : books.saved) {
    const absl::StatusOr<SavedState> found = store.Load(kTenant, SampleId(number));
    ASSERT_TRUE(found.ok()) << "lost: " << number << ": " << found.status();
    ExpectSameState(*found, Expected(number, parent));
  }
  for (uint64_t number : books.deleted) {
    ASSERT_EQ(store.Load(kTenant, SampleId(number)).status().code(), absl::StatusCode::kNotFound);
  }
  for (const auto& [session, number] : books.heads) {
    const absl::StatusOr<Session> found = store.GetSession(kTenant, session);
    ASSERT_TRUE(found.ok()) << session << ": " << found.status();
    EXPECT_EQ(found->head, SampleId(number)) << session;
  }
  const absl::StatusOr<StoreStats> stats = store.Stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->num_states, books.saved.size());
  EXPECT_EQ(stats->num_sessions, books.heads.size());
}

// A store made of a backup: whole, with what it must have and nothing that was gone before.
void CheckBackup(const std::string& directory, const AcknowledgedBackup& backup,
                 const Books& books) {
  absl::StatusOr<std::unique_ptr<StateStore>> store = OpenRocksDbStore(
      directory, KillOptions(), [] { return absl::Now(); }, nullptr);
  ASSERT_TRUE(store.ok()) << backup.operation.kind << ": " << store.status();
  const absl::StatusOr<Page<StateManifest>> listed =
      (*store)->ListStates(kTenant, {}, kMaxPageSize, "");
  ASSERT_TRUE(listed.ok()) << listed.status();
  std::set<StateId> there;
  for (const StateManifest& manifest : listed->items) there.insert(manifest.id);
  EXPECT_EQ((*store)->Stats()->num_states, there.size());
  for (const auto& [number, parent] : backup.must_have) {
    ASSERT_TRUE(there.contains(SampleId(number))) << "lost in the backup: " << number;
  }
  for (const auto& [number, parent] : books.parents) {
    if (!there.erase(SampleId(number))) continue;
    ASSERT_FALSE(backup.must_not_have.contains(number)) << "came back: " << number;
    const absl::StatusOr<SavedState> found = (*store)->Load(kTenant, SampleId(number));
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectSameState(*found, Expected(number, parent));
  }
  EXPECT_TRUE(there.empty()) << "a state that nobody saved: " << *there.begin();
}

// Each backup that was acknowledged in the last run opens and verifies; those of the set, restored.
void CheckBackups(const std::string& directory, Books& books, Totals& totals) {
  const std::string restored = directory + ".restored";
  std::vector<AcknowledgedBackup> in_set;
  for (const AcknowledgedBackup& backup : books.backups) {
    if (backup.operation.kind == "backup") {
      in_set.push_back(backup);
      continue;
    }
    CheckBackup(CheckpointDirectory(directory, backup.operation.number), backup, books);
    ++totals.checkpoints;
  }
  if (!in_set.empty()) {
    const auto infos = ListBackups(BackupSetDirectory(directory));
    ASSERT_TRUE(infos.ok()) << infos.status();
    ASSERT_GE(infos->size(), books.num_backups_in_set + in_set.size());
    // All of them are there; the last one stands for them, restoring is slow.
    const uint32_t id = (*infos)[books.num_backups_in_set + in_set.size() - 1].id;
    ASSERT_TRUE(RestoreBackup(BackupSetDirectory(directory), id, restored).ok());
    CheckBackup(restored, in_set.back(), books);
    totals.backups += static_cast<int>(in_set.size());
  }
  std::error_code error;
  std::filesystem::remove_all(restored, error);
  const std::filesystem::path path(directory);
  for (const auto& entry : std::filesystem::directory_iterator(path.parent_path())) {
    const std::string name = entry.path().filename();
    if (name.starts_with(path.filename().string() + ".checkpoint")) {
      std::filesystem::remove_all(entry.path(), error);
    }
  }
}

// Every chunk in the closed store belongs to a state that is in the books, and no intent is left.
void CheckNoOrphans(const std::string& directory, const Books& books) {
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  rocksdb::ColumnFamilyOptions with_merge;
  ASSERT_TRUE(rocksdb::DB::OpenForReadOnly(rocksdb::DBOptions(), directory,
                                           {{rocksdb::kDefaultColumnFamilyName, with_merge},
                                            {"chunks", rocksdb::ColumnFamilyOptions()}},
                                           &handles, &opened)
                  .ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
  const std::unique_ptr<rocksdb::ColumnFamilyHandle> meta(handles[0]);
  const std::unique_ptr<rocksdb::ColumnFamilyHandle> chunks(handles[1]);
  std::set<std::string> alive;
  for (const auto& [number, parent] : books.saved) alive.insert(SampleId(number));
  const std::unique_ptr<rocksdb::Iterator> chunk(
      db->NewIterator(rocksdb::ReadOptions(), chunks.get()));
  for (chunk->SeekToFirst(); chunk->Valid(); chunk->Next()) {
    const std::string id = chunk->key().ToString().substr(sizeof(kTenant), 29);
    ASSERT_TRUE(alive.contains(id)) << "orphan chunk of " << id;
  }
  ASSERT_TRUE(chunk->status().ok());
  const std::unique_ptr<rocksdb::Iterator> intent(
      db->NewIterator(rocksdb::ReadOptions(), meta.get()));
  intent->Seek("p/");
  EXPECT_FALSE(intent->Valid() && intent->key().starts_with("p/"));
}

constexpr int kRoundsPerDirectory = 10;

// Kill -9 leaves what the system was given, so all but the first directories are in memory, where
// syncs cost nothing.
std::string MakeDirectoryFor(int round) {
  const bool on_disk = round < 2 * kRoundsPerDirectory;
  const std::filesystem::path base = !on_disk && access("/dev/shm", W_OK) == 0
                                         ? "/dev/shm"
                                         : std::filesystem::temp_directory_path();
  std::string path = (base / "vivarium_kill_XXXXXX").string();
  return mkdtemp(path.data()) != nullptr ? path : "";
}

// One directory: kills, and after each everything that was said is looked at.
void RunDirectory(int begin, int num_rounds, uint64_t seed, Totals& totals) {
  std::mt19937_64 random(seed);
  const std::string parent = MakeDirectoryFor(begin);
  ASSERT_NE(parent, "");
  const std::string directory = parent + "/store";
  Books books;
  for (int round = begin; round < begin + num_rounds; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round, " of ", parent));
    // Some kills fall into the opening, most into the writing: at some line, and a little later,
    // so that it is the same work that is cut off on a slow machine and on a fast one.
    KillPoint point;
    if (round % 5 != 0) point.num_lines = 2 + random() % 400;
    point.delay = std::chrono::microseconds(random() % (round % 5 != 0 ? 2'000 : 40'000));
    const uint64_t first_number = 1 + static_cast<uint64_t>(round) * 100'000;
    totals.acknowledged += ReadLines(RunAndKill(directory, first_number, random(), point), books);
    totals.cut_off += static_cast<int>(books.unacknowledged.size());
    absl::StatusOr<std::unique_ptr<StateStore>> store = OpenRocksDbStore(
        directory, KillOptions(), [] { return absl::Now(); }, nullptr);
    ASSERT_TRUE(store.ok()) << store.status();
    Settle(**store, books);
    CheckBooks(**store, books);
    CheckBackups(directory, books, totals);
    if (const auto infos = ListBackups(BackupSetDirectory(directory)); infos.ok()) {
      books.num_backups_in_set = infos->size();
    }
    if (::testing::Test::HasFailure()) return;  // the directory stays, for a look
  }
  CheckNoOrphans(directory, books);
  std::error_code error;
  std::filesystem::remove_all(parent, error);
}

TEST(Kill, AcknowledgedStatesSurviveAndOthersAreWholeOrAbsent) {
  const char* wanted = std::getenv("VIVARIUM_KILL_ROUNDS");
  const int num_rounds = wanted != nullptr ? std::atoi(wanted) : 200;
  constexpr int kNumWorkers = 2;
  Totals totals;
  std::atomic<int> next{0};
  std::vector<std::thread> workers;
  for (int worker = 0; worker < kNumWorkers; ++worker) {
    workers.emplace_back([&] {
      for (int begin = 0; (begin = next.fetch_add(kRoundsPerDirectory)) < num_rounds;) {
        RunDirectory(begin, std::min(kRoundsPerDirectory, num_rounds - begin),
                     7 + static_cast<uint64_t>(begin), totals);
        if (::testing::Test::HasFailure()) return;
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  std::cout << num_rounds << " kills: " << totals.acknowledged << " operations acknowledged, "
            << totals.cut_off << " cut off; " << totals.checkpoints << " checkpoints and "
            << totals.backups << " incremental backups acknowledged\n";
  EXPECT_GT(totals.acknowledged, num_rounds);
  EXPECT_GT(totals.cut_off, num_rounds / 4);
  EXPECT_GT(totals.checkpoints, num_rounds / 40);
  EXPECT_GT(totals.backups, num_rounds / 40);
}

}  // namespace
}  // namespace vivarium::statestore
