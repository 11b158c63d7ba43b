// kill_writer DIRECTORY FIRST_NUMBER SEED: writes states, moves heads and deletes without end, from
// two threads, and says on stdout what it begins and what was acknowledged; kill_test kills it.
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "statestore/rocksdb_store.h"
#include "tests/statestore/kill_script.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {
namespace {

// One write per line: shorter than PIPE_BUF, so lines of two threads don't mix.
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

class Writer {
 public:
  Writer(StateStore* store, std::string session, uint64_t first_number, uint64_t seed)
      : store_(store), session_(std::move(session)), next_(first_number), random_(seed) {}

  [[noreturn]] void Run() {
    while (true) {
      const uint64_t choice = random_() % 10;
      if (choice < 7 || alive_.empty()) {
        Save();
      } else if (choice < 9) {
        Delete();
      } else if (absl::Status status = store_->Sweep(absl::Now()); !status.ok()) {
        Fail(status);
      }
    }
  }

 private:
  void Save() {
    const uint64_t number = next_++;
    const uint64_t parent = alive_.empty() ? 0 : alive_[random_() % alive_.size()];
    const bool moves = random_() % 2 == 0;
    SavedState state = SampleState(SampleId(number), number);
    if (parent != 0) state.manifest.parent_id = SampleId(parent);
    Commit commit = CommitOf(state);
    if (moves) commit.head_move = Commit::HeadMove{session_, state.manifest.id, "*"};
    const std::string operation =
        absl::StrCat("save ", number, " ", parent, " ", moves ? session_ : "-");
    Say("+ " + operation);
    if (absl::Status status = store_->Apply(commit); !status.ok()) Fail(status);
    Say("= " + operation);
    if (moves) {
      head_ = number;
    }
    alive_.push_back(number);
  }

  void Delete() {
    const size_t index = random_() % alive_.size();
    if (alive_[index] == head_) return;
    const std::string operation = absl::StrCat("delete ", alive_[index]);
    Say("+ " + operation);
    if (absl::Status status = store_->DeleteState(kTenant, SampleId(alive_[index])); !status.ok()) {
      Fail(status);
    }
    Say("= " + operation);
    alive_.erase(alive_.begin() + static_cast<ptrdiff_t>(index));
  }

  StateStore* const store_;
  const std::string session_;
  uint64_t next_;
  std::mt19937_64 random_;
  std::vector<uint64_t> alive_;
  uint64_t head_ = 0;
};

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
  Writer(store->get(), absl::StrCat("a", first_number), first_number, seed).Run();
}

}  // namespace
}  // namespace vivarium::statestore

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  return vivarium::statestore::Main(argv[1], std::strtoull(argv[2], nullptr, 10),
                                    std::strtoull(argv[3], nullptr, 10));
}
