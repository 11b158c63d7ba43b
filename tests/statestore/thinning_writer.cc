// thinning_writer DIRECTORY LOG: goes on with the one thread of a store, snapshot after snapshot,
// each thinning those before it, without end; appends the number of each to LOG once it is
// acknowledged. thinning_kill_test kills it.
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "statestore/rocksdb_store.h"
#include "statestore/snapshot_thinning.h"
#include "tests/statestore/store_harness.h"
#include "tests/statestore/thinned_thread.h"

namespace vivarium::statestore {
namespace {

int Main(const std::string& directory, const char* log) {
  const int file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  absl::StatusOr<std::unique_ptr<StateStore>> store = OpenRocksDbStore(
      directory, SmallOptions(), [] { return absl::Now(); }, nullptr);
  if (file < 0 || !store.ok()) return 3;
  const absl::StatusOr<Page<StateManifest>> newest = (*store)->ListStates(kTenant, {}, 1, "");
  if (!newest.ok()) return 4;
  uint64_t number = 0;
  std::vector<SnapshotRef> left;
  if (!newest->items.empty()) {
    number = newest->items[0].position / kThreadEveryTokens;
    left = newest->items[0].snapshots;
    left.push_back({newest->items[0].id, newest->items[0].position});
  }
  while (true) {
    const SavedState state = ThreadSnapshot(++number);
    Commit commit = CommitOf(state);
    left = PlanSnapshot(left, kThreadNumNewest, &commit);
    if (!(*store)->Apply(commit).ok()) return 5;
    const std::string line = std::to_string(number) + "\n";
    if (write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size())) return 6;
  }
}

}  // namespace
}  // namespace vivarium::statestore

int main(int argc, char** argv) {
  return argc == 3 ? vivarium::statestore::Main(argv[1], argv[2]) : 2;
}
