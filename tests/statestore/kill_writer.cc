// kill_writer DIRECTORY FIRST_NUMBER SEED: without end, two threads save, fork, delete and move
// heads, and a third one sweeps and makes backups, all of one store; they say on stdout what they
// begin and what was acknowledged; kill_test kills it.
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "statestore/rocksdb_store.h"
#include "tests/statestore/kill_script.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kMaxAlive = 40;  // of each thread: the reader looks at all of them

// One write per line: shorter than PIPE_BUF, so lines of several threads don't mix.
void Say(const std::string& line) {
  const std::string bytes = line + "\n";
  if (write(STDOUT_FILENO, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    std::_Exit(3);
  }
}

[[noreturn]] void Fail(const absl::Status& status) {
  Say("! " + status.ToString());
  std::_Exit(4);
}

template <typename Act>
void Announced(const std::string& operation, Act act) {
  Say("+ " + operation);
  if (absl::Status status = act(); !status.ok()) Fail(status);
  Say("= " + operation);
}

class Writer {
 public:
  Writer(StateStore* store, std::string session, uint64_t first_number, uint64_t seed)
      : store_(store), session_(std::move(session)), next_(first_number), random_(seed) {}

  [[noreturn]] void Run() {
    while (true) {
      const uint64_t choice = random_() % 10;
      if (alive_.empty() || (choice < 6 && alive_.size() < kMaxAlive)) {
        Save();
      } else if (choice < 7) {
        Move();
      } else {
        Delete();
      }
    }
  }

 private:
  void Save() {
    const uint64_t number = next_++;
    const uint64_t parent = alive_.empty() ? 0 : alive_[random_() % alive_.size()];
    const bool moves = random_() % 2 == 0;
    SavedState state = MixedSampleState(number);
    if (parent != 0) state.manifest.parent_id = SampleId(parent);
    Commit commit = CommitOf(state);
    if (moves) commit.head_move = Commit::HeadMove{session_, state.manifest.id, "*"};
    Announced(absl::StrCat("save ", number, " ", parent, " ", moves ? session_ : "-"),
              [&] { return store_->Apply(commit); });
    if (moves) head_ = number;
    alive_.push_back(number);
  }

  void Move() {
    const uint64_t number = alive_[random_() % alive_.size()];
    Commit commit;
    commit.tenant = kTenant;
    commit.head_move = Commit::HeadMove{session_, SampleId(number), "*"};
    Announced(absl::StrCat("move ", number, " ", session_), [&] { return store_->Apply(commit); });
    head_ = number;
  }

  void Delete() {
    const size_t index = random_() % alive_.size();
    const uint64_t number = alive_[index];
    if (number == head_) return;
    Announced(absl::StrCat("delete ", number),
              [&] { return store_->DeleteState(kTenant, SampleId(number)); });
    alive_.erase(alive_.begin() + static_cast<ptrdiff_t>(index));
  }

  StateStore* const store_;
  const std::string session_;
  uint64_t next_;
  std::mt19937_64 random_;
  std::vector<uint64_t> alive_;
  uint64_t head_ = 0;
};

[[noreturn]] void LookAfter(StateStore* store, const std::string& directory, uint64_t first_number,
                            uint64_t seed) {
  std::mt19937_64 random(seed);
  for (uint64_t number = first_number;; ++number) {
    absl::SleepFor(absl::Microseconds(random() % 6000));
    const uint64_t choice = random() % 4;
    if (choice == 0) {
      Announced(absl::StrCat("checkpoint ", number),
                [&] { return store->Backup(CheckpointDirectory(directory, number)); });
    } else if (choice == 1) {
      Announced(absl::StrCat("backup ", number),
                [&] { return store->AddBackup(BackupSetDirectory(directory), nullptr).status(); });
    } else if (absl::Status status = store->Sweep(absl::Now()); !status.ok()) {
      Fail(status);
    }
  }
}

int Main(const std::string& directory, uint64_t first_number, uint64_t seed) {
  Say("+ ready");
  absl::StatusOr<std::unique_ptr<StateStore>> store = OpenRocksDbStore(
      directory, KillOptions(), [] { return absl::Now(); }, nullptr);
  if (!store.ok()) Fail(store.status());
  Say("= ready");
  // Sessions of one's own in each run, so that a head is what one thread last said.
  std::thread other([&] {
    Writer(store->get(), absl::StrCat("b", first_number), first_number + 50'000, seed + 1).Run();
  });
  std::thread keeper([&] { LookAfter(store->get(), directory, first_number, seed + 2); });
  Writer(store->get(), absl::StrCat("a", first_number), first_number, seed).Run();
}

}  // namespace
}  // namespace vivarium::statestore

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  return vivarium::statestore::Main(argv[1], std::strtoull(argv[2], nullptr, 10),
                                    std::strtoull(argv[3], nullptr, 10));
}
