// A disk that fails in the middle of saving and dropping: once it works again, every state that is
// there is found by its tokens, and no key is left of those that are not.
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

#include "tests/statestore/faulty_file_system.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"
#include "tests/statestore/thread_states.h"

namespace vivarium::statestore {
namespace {

using Fault = FaultyFileSystem::Fault;

constexpr uint64_t kNumStates = 8;

// The tokens of state `number`'s thread; it has consumed all but the last.
Ids TokensOf(uint64_t number) {
  Ids ids;
  for (uint64_t i = 0; i < 4 + number % 3; ++i) ids.push_back(static_cast<int32_t>(100 * number));
  return ids;
}

class FaultyRun {
 public:
  FaultyRun() {
    options_ = SmallOptions();
    options_.write_buffer_bytes = 64 << 10;
    options_.env = faulty_.env.get();
  }

  // False when the script was over before the `countdown`-th operation.
  bool Run(Fault fault, int countdown) {
    Open();
    faulty_.system->Arm(fault, countdown);
    Act();
    const bool has_struck = faulty_.system->has_struck();
    faulty_.system->Heal();
    store_.reset();
    Open();
    EXPECT_NE(store_, nullptr);
    if (store_ != nullptr) Check();
    return has_struck;
  }

 private:
  void Open() {
    auto opened = OpenRocksDbStore(directory_.Sub("store"), options_, clock_.AsClock(), nullptr);
    store_ = opened.ok() ? *std::move(opened) : nullptr;
  }

  // What fails is not acknowledged, and may be there or not.
  void Act() {
    for (uint64_t number = 1; number <= kNumStates; ++number) {
      SavedState state = ThreadState(number, nullptr, TokensOf(number));
      if (number % 4 == 3) state.manifest.expires = clock_.Now() + absl::Seconds(1);
      (void)store_->Apply(CommitOf(state)).ok();
      if (number % 2 == 0) (void)store_->DeleteState(kTenant, SampleId(number - 1)).ok();
    }
    clock_.Advance(absl::Seconds(2));
    (void)store_->Sweep(clock_.Now()).ok();
  }

  void Check() {
    std::set<uint64_t> live;
    for (uint64_t number = 1; number <= kNumStates; ++number) {
      const bool is_live = store_->Load(kTenant, SampleId(number)).ok();
      if (is_live) live.insert(number);
      Ids prompt = TokensOf(number);
      prompt.push_back(7);
      const auto match = store_->FindPrefix(kTenant, QueryOf(prompt));
      ASSERT_TRUE(match.ok()) << match.status();
      EXPECT_EQ(match->id, is_live ? SampleId(number) : "") << number;
      EXPECT_TRUE(match->damaged.empty());
    }
    EXPECT_TRUE(store_->Sweep(clock_.Now()).ok());  // expired ones had their keys until now
    store_.reset();
    RawRocksDb raw(directory_.Sub("store"));
    EXPECT_EQ(raw.Keys("f/", /*chunks=*/false).size(), live.size());
  }

  FakeClock clock_;
  TemporaryDirectory directory_;
  FaultyEnv faulty_;
  RocksDbOptions options_;
  std::unique_ptr<StateStore> store_;
};

TEST(PrefixFaults, TheIndexIsWhatTheStatesAre) {
  for (const Fault fault : {Fault::kEioOnce, Fault::kEioForGood, Fault::kFullDisk}) {
    // Every 8th operation: io_fault_test is the exhaustive one.
    for (int countdown = 1 + static_cast<int>(fault);; countdown += 8) {
      FaultyRun run;
      const bool has_struck = run.Run(fault, countdown);
      ASSERT_FALSE(HasFailure()) << static_cast<int>(fault) << " at operation " << countdown;
      if (!has_struck) {
        EXPECT_GT(countdown, 20);
        break;
      }
    }
  }
}

}  // namespace
}  // namespace vivarium::statestore
