// kill -9 at random points: what was acknowledged is there, bit for bit; what was not is there as a
// whole or not at all. VIVARIUM_KILL_ROUNDS sets how many kills.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/statestore/kill_script.h"
#include "tests/statestore/state_samples.h"
#include "tests/support/test_environment.h"

namespace vivarium::statestore {
namespace {

// What is known of the states of one directory.
struct Books {
  std::map<uint64_t, uint64_t> saved;         // acknowledged, not deleted: number -> parent
  std::set<uint64_t> deleted;                 // acknowledged
  std::map<std::string, uint64_t> heads;      // acknowledged: session -> number
  std::vector<KillOperation> unacknowledged;  // of the last run: may be there, whole, or not
};

KillOperation ParseOperation(std::istringstream& line) {
  KillOperation operation;
  line >> operation.kind >> operation.number >> operation.parent >> operation.session;
  return operation;
}

void Acknowledge(const KillOperation& operation, Books& books) {
  if (operation.kind == "save") {
    books.saved[operation.number] = operation.parent;
    if (operation.session != "-") books.heads[operation.session] = operation.number;
  } else if (operation.kind == "delete") {
    books.saved.erase(operation.number);
    books.deleted.insert(operation.number);
  }
}

// Returns how many operations were acknowledged.
int ReadLines(const std::string& text, Books& books) {
  std::map<std::string, KillOperation> begun;
  int num_acknowledged = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_NE(line[0], '!') << "the writer failed: " << line;
    std::istringstream fields(line.substr(2));
    const KillOperation operation = ParseOperation(fields);
    if (line[0] == '+') begun[line.substr(2)] = operation;
    if (line[0] != '=') continue;
    begun.erase(line.substr(2));
    Acknowledge(operation, books);
    num_acknowledged += operation.kind == "ready" ? 0 : 1;
  }
  books.unacknowledged.clear();
  for (const auto& [text_of, operation] : begun) {
    if (operation.kind != "ready") books.unacknowledged.push_back(operation);
  }
  return num_acknowledged;
}

// Runs the writer and kills it `duration` after its start, or after its store is open; gives what
// it said.
std::string RunAndKill(const std::string& directory, uint64_t first_number, uint64_t seed,
                       bool wait_for_open, std::chrono::microseconds duration) {
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
  std::promise<void> is_open;
  std::thread reader([&] {
    char buffer[4096];
    bool said_so = false;
    for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(n));
      if (!said_so && text.find("= ready") != std::string::npos) {
        said_so = true;
        is_open.set_value();
      }
    }
  });
  if (wait_for_open) {
    EXPECT_EQ(is_open.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  }
  std::this_thread::sleep_for(duration);
  EXPECT_EQ(kill(child, SIGKILL), 0);
  int wait_status = 0;
  EXPECT_EQ(waitpid(child, &wait_status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(wait_status)) << "the writer ended by itself";
  reader.join();
  close(ends[0]);
  return text;
}

SavedState Expected(uint64_t number, uint64_t parent) {
  SavedState state = SampleState(SampleId(number), number);
  if (parent != 0) state.manifest.parent_id = SampleId(parent);
  return state;
}

// Settles what the unacknowledged operations came to, and checks that each is whole.
void Settle(StateStore& store, Books& books) {
  for (const KillOperation& operation : books.unacknowledged) {
    const absl::StatusOr<SavedState> found = store.Load(kTenant, SampleId(operation.number));
    if (!found.ok()) {
      ASSERT_EQ(found.status().code(), absl::StatusCode::kNotFound) << found.status();
    }
    if (operation.kind == "delete") {
      if (!found.ok()) Acknowledge(operation, books);
      continue;
    }
    if (found.ok()) {
      // The state and its head move are one.
      Acknowledge(operation, books);
    }
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

TEST(Kill, AcknowledgedStatesSurviveAndOthersAreWholeOrAbsent) {
  const char* wanted = std::getenv("VIVARIUM_KILL_ROUNDS");
  const int num_rounds = wanted != nullptr ? std::atoi(wanted) : 200;
  constexpr int kRoundsPerDirectory = 10;
  std::mt19937_64 random(7);
  int num_acknowledged = 0;
  int num_unacknowledged = 0;
  for (int begin = 0; begin < num_rounds; begin += kRoundsPerDirectory) {
    const TemporaryDirectory parent;
    const std::string directory = parent.Sub("store");
    Books books;
    for (int round = begin; round < std::min(begin + kRoundsPerDirectory, num_rounds); ++round) {
      // Some kills fall into the opening, most into the writing.
      const bool wait_for_open = round % 5 != 0;
      const std::chrono::microseconds duration(random() % 60'000);
      const uint64_t first_number = 1 + static_cast<uint64_t>(round) * 100'000;
      num_acknowledged +=
          ReadLines(RunAndKill(directory, first_number, random(), wait_for_open, duration), books);
      num_unacknowledged += static_cast<int>(books.unacknowledged.size());
      absl::StatusOr<std::unique_ptr<StateStore>> store = OpenRocksDbStore(
          directory, KillOptions(), [] { return absl::Now(); }, nullptr);
      ASSERT_TRUE(store.ok()) << "round " << round << ": " << store.status();
      Settle(**store, books);
      CheckBooks(**store, books);
      ASSERT_FALSE(HasFailure()) << "round " << round;
    }
    CheckNoOrphans(directory, books);
  }
  RecordProperty("acknowledged", num_acknowledged);
  RecordProperty("unacknowledged", num_unacknowledged);
  std::cout << num_rounds << " kills: " << num_acknowledged << " operations acknowledged, "
            << num_unacknowledged << " cut off\n";
  EXPECT_GT(num_acknowledged, num_rounds);
  EXPECT_GT(num_unacknowledged, num_rounds / 4);
}

}  // namespace
}  // namespace vivarium::statestore
