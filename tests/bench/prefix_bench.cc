// prefix_bench: what FindPrefix costs, with many states stored and a long prompt. Every answer is
// checked. States are tiny: their bytes don't matter here.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "statestore/rocksdb_store.h"
#include "statestore/state_validation.h"
#include "tests/statestore/thread_states.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kNumStates = 100'000;  // unless the first argument says otherwise
constexpr size_t kPromptTokens = 100'000;
constexpr size_t kChain = 1000;  // states of one thread, each on top of the one before
constexpr int kRounds = 30;

void Check(bool is_right, const std::string& what) {
  if (is_right) return;
  std::fprintf(stderr, "prefix_bench: wrong: %s\n", what.c_str());
  std::exit(1);
}

// Milliseconds: median and worst.
void Measure(const char* name, const std::function<void()>& work) {
  std::vector<double> times_ms;
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const auto end = std::chrono::steady_clock::now();
    times_ms.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
  }
  std::sort(times_ms.begin(), times_ms.end());
  std::printf("%-62s p50 %8.3f ms   worst %8.3f ms\n", name, times_ms[kRounds / 2],
              times_ms.back());
}

Ids RandomTokens(size_t count, uint64_t seed) {
  Ids ids(count);
  for (int32_t& id : ids) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    id = static_cast<int32_t>(seed >> 33) % 50'000;
  }
  return ids;
}

void Run(size_t num_states) {
  TemporaryDirectory directory;
  RocksDbOptions options;
  options.disk_reserve_bytes = 0;
  auto opened = OpenRocksDbStore(directory.Sub("store"), options, absl::Now, nullptr);
  Check(opened.ok(), opened.status().ToString());
  StateStore* store = opened->get();

  std::vector<SavedState> pending;
  const auto flush = [&] {
    Commit commit;
    commit.tenant = kTenant;
    for (const SavedState& state : pending) commit.states.push_back({state.manifest, &state.slot});
    const absl::Status status = store->Apply(commit);
    Check(status.ok(), status.ToString());
    pending.clear();
  };
  for (size_t number = 1; number <= num_states; ++number) {
    pending.push_back(ThreadState(number, nullptr, RandomTokens(20 + number % 100, number)));
    if (pending.size() == kMaxCommitStates) flush();
  }
  const Ids prompt = RandomTokens(kPromptTokens, 1'000'000'007);
  // A document of the whole prompt, read at once, and a thread of small steps.
  pending.push_back(ThreadState(num_states + 1, nullptr, Ids(prompt.begin(), prompt.end() - 1)));
  flush();
  Ids other = RandomTokens(kPromptTokens, 1'000'000'009);
  StateManifest parent;
  for (size_t i = 0; i < kChain; ++i) {
    const size_t step = kPromptTokens / kChain - 1;
    const auto begin = other.begin() + static_cast<std::ptrdiff_t>(i * step);
    const Ids ids(begin, begin + static_cast<std::ptrdiff_t>(step));
    pending.push_back(ThreadState(num_states + 2 + i, i == 0 ? nullptr : &parent, ids));
    parent = pending.back().manifest;
    if (pending.size() == kMaxCommitStates) flush();
  }
  if (!pending.empty()) flush();

  std::printf("%zu states, prompts of %zu tokens, median of %d\n", num_states, kPromptTokens,
              kRounds);
  const auto find = [&](const Ids& tokens) {
    auto match = store->FindPrefix(kTenant, QueryOf(tokens));
    Check(match.ok(), match.status().ToString());
    return *match;
  };
  const Ids stranger = RandomTokens(kPromptTokens, 3'000'000'019);
  Measure("nothing stored begins so",
          [&] { Check(find(stranger).id.empty(), "found one that isn't there"); });
  Ids short_prompt(stranger.begin(), stranger.begin() + 1000);
  Measure("nothing stored begins so, 1,000 tokens",
          [&] { Check(find(short_prompt).id.empty(), "found one that isn't there"); });
  Measure("all but two tokens, in one state",
          [&] { Check(find(prompt).position == kPromptTokens - 2, "document"); });
  Measure("nearly all, in a thread of 1,000 states",
          [&] { Check(find(other).position == parent.position, "thread"); });
  Ids beginning = RandomTokens(20 + 777 % 100, 777);
  beginning.insert(beginning.end(), stranger.begin(), stranger.end());
  Measure("the first 96 tokens, one of all the states",
          [&] { Check(find(beginning).id == SampleId(777), "beginning"); });
  const auto begin = std::chrono::steady_clock::now();
  opened->reset();
  opened = OpenRocksDbStore(directory.Sub("store"), options, absl::Now, nullptr);
  Check(opened.ok(), opened.status().ToString());
  store = opened->get();
  const auto end = std::chrono::steady_clock::now();
  std::printf("closed and opened, the index read, in %.0f ms\n",
              std::chrono::duration<double, std::milli>(end - begin).count());
  Check(find(beginning).id == SampleId(777), "after reopening");
}

}  // namespace
}  // namespace vivarium::statestore

int main(int argc, char** argv) {
  vivarium::statestore::Run(argc > 1 ? std::strtoul(argv[1], nullptr, 10)
                                     : vivarium::statestore::kNumStates);
}
