// Random schedules with real arithmetic: no slot is ever lost, and every stream ends exactly once,
// whoever cancels it and whenever the engine drains.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/runtime/real_engine.h"

namespace vivarium::engine {
namespace {

constexpr int32_t kMaxSlots = 3;
constexpr int kNumThreads = 3;
#if defined(VIVARIUM_TEST_CUDA_ON_CPU)
constexpr int kNumPerThread = 5;
constexpr int kRounds = 1;
const std::string kDevice = "cuda:0";
#else
constexpr int kNumPerThread = 16;
constexpr int kRounds = 3;
const std::string kDevice = test::TestDevice();
#endif

EngineOptions ScheduleOptions() {
  EngineOptions options = Options(kMaxSlots, 16);
  options.max_live_streams = 8;
  options.max_queued_streams = 12;
  options.time_slice_tokens = 5;
  return options;
}

// A finished stream's state, or none, to go on from.
std::unique_ptr<StateSnapshot> SourceOf(const Recorded* record) {
  if (record == nullptr || !record->done.HasBeenNotified() || !record->finished) return nullptr;
  if (record->finished->state == nullptr) return nullptr;
  return std::make_unique<StateSnapshot>(CopySnapshot(*record->finished->state));
}

class Schedule {
 public:
  Schedule(RealEngine* real, int round) : real_(*real), round_(round), accepted_(kNumThreads) {}

  // Streams come from several threads, many of which are cancelled at once or later.
  void Run(std::atomic<int>* num_running) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kNumThreads; ++t) {
      threads.emplace_back([this, t, num_running] {
        SubmitMany(t);
        --*num_running;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  void AwaitAll() {
    for (const auto& records : accepted_) {
      for (const auto& record : records) record->done.WaitForNotification();
    }
  }

  size_t CheckEach() const {
    size_t num_accepted = 0;
    for (const auto& records : accepted_) {
      for (const auto& record : records) {
        EXPECT_TRUE(record->done.HasBeenNotified());
        EXPECT_EQ(record->num_finished, 1);
        EXPECT_TRUE(record->in_order);
        EXPECT_TRUE(record->finished && record->finished->reason != FinishReason::kError)
            << record->finished->status;
      }
      num_accepted += records.size();
    }
    return num_accepted;
  }

 private:
  void SubmitMany(int t) {
    std::mt19937 random(round_ * 100 + t);
    std::vector<StreamId> ids;
    for (int i = 0; i < kNumPerThread; ++i) {
      EngineRequest request =
          MakeRequest(SomeTokens(1 + static_cast<int>(random() % 40), i), random() % 20, i);
      request.save.at_end = random() % 3 != 0;
      if (random() % 3 == 0) request.save.every_tokens = 16;
      const Recorded* const last = accepted_[t].empty() ? nullptr : accepted_[t].back().get();
      if (random() % 2 == 0) request.source = SourceOf(last);
      if (request.source != nullptr) {  // from its slot, where it is still there
        const std::string name = std::to_string(t) + "/" + std::to_string(accepted_[t].size());
        real_.engine().NameHot(last->finished->hot_id, name);
        request.hot = real_.engine().LeaseHot(name);
        request.keeps_hot = random() % 2 == 0;
        if (request.hot) request.source->slot = StateBuffer();
      }
      const auto record = std::make_shared<Recorded>();
      const auto id =
          real_.engine().Submit(std::move(request), std::make_unique<RecordingSink>(record));
      if (!id.ok()) continue;
      accepted_[t].push_back(record);
      ids.push_back(*id);
      if (random() % 4 == 0) real_.engine().Cancel(ids[random() % ids.size()]);
      if (random() % 8 == 0) record->done.WaitForNotification();
    }
  }

  RealEngine& real_;
  const int round_;
  std::vector<std::vector<std::shared_ptr<Recorded>>> accepted_;
};

void ExpectIdle(const EngineStats& stats) {
  EXPECT_EQ(stats.used_slots, 0);
  EXPECT_EQ(stats.live_streams, 0);
  EXPECT_EQ(stats.queued_streams, 0);
}

TEST(RealModelSchedule, NoSlotIsLost) {
  RealEngine real(kGoldens + "tiny-mamba-bf16", ScheduleOptions(),
                  {.weights = WeightFormat::kAuto, .device = kDevice});
  const auto expected = real.Run(MakeRequest(SomeTokens(30, 5), 10, 5))->token_ids();
  for (int round = 0; round < kRounds; ++round) {
    Schedule schedule(&real, round);
    std::atomic<int> num_running = kNumThreads;
    schedule.Run(&num_running);
    schedule.AwaitAll();
    EXPECT_GT(schedule.CheckEach(), 0u);
    // States may still be on their way to the host.
    for (int i = 0; i < 5000 && real.engine().Stats().used_slots > 0; ++i) {
      absl::SleepFor(absl::Milliseconds(2));
    }
    ExpectIdle(real.engine().Stats());
    // All slots are there, and none holds anything of before.
    std::vector<std::shared_ptr<Recorded>> probes;
    for (int i = 0; i < kMaxSlots; ++i) {
      probes.push_back(real.Submit(MakeRequest(SomeTokens(30, 5), 10, 5)));
    }
    for (const auto& probe : probes) {
      probe->done.WaitForNotification();
      EXPECT_EQ(probe->token_ids(), expected);
    }
  }
}

TEST(RealModelSchedule, ExactlyOneFinishUnderCancelAndDrain) {
  for (int round = 0; round < 2 * kRounds; ++round) {
    RealEngine real(kGoldens + "tiny-mamba-bf16", ScheduleOptions(),
                    {.weights = WeightFormat::kAuto, .device = kDevice});
    Schedule schedule(&real, round);
    std::atomic<int> num_running = kNumThreads;
    std::thread drainer([&] {
      const uint64_t num_before = 4 + 3 * static_cast<uint64_t>(round);
      while (real.engine().Stats().finished_streams < num_before && num_running > 0) {
        std::this_thread::yield();
      }
      real.engine().Drain(absl::Now() + absl::Milliseconds(round % 3));
    });
    schedule.Run(&num_running);
    drainer.join();
    const size_t num_accepted = schedule.CheckEach();
    const EngineStats stats = real.engine().Stats();
    ExpectIdle(stats);
    EXPECT_EQ(stats.finished_streams, num_accepted);
    EXPECT_EQ(stats.finished_streams + stats.rejected_streams,
              static_cast<uint64_t>(kNumThreads * kNumPerThread));
  }
}

}  // namespace
}  // namespace vivarium::engine
