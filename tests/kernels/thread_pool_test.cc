#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace vivarium::kernels {
namespace {

std::unique_ptr<ThreadPool> MakePool(int num_threads) {
  std::string error;
  std::unique_ptr<ThreadPool> pool = ThreadPool::Create(num_threads, &error);
  EXPECT_NE(pool, nullptr) << error;
  return pool;
}

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, CoversEveryItemOnceInLargeEnoughChunks) {
  const std::unique_ptr<ThreadPool> pool = MakePool(GetParam());
  EXPECT_EQ(pool->num_threads(), GetParam());
  for (const int64_t num_items : {0, 1, 2, 3, 7, 63, 64, 65, 1000}) {
    for (const int64_t min_chunk : {1, 2, 5, 64, 5000}) {
      std::vector<int> visits(static_cast<size_t>(num_items), 0);  // one thread writes each
      std::atomic<int> short_chunks{0};
      pool->ParallelFor(num_items, min_chunk, [&](int64_t begin, int64_t end) {
        if (end - begin < min_chunk) ++short_chunks;
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      for (const int count : visits) ASSERT_EQ(count, 1) << num_items << " " << min_chunk;
      EXPECT_LE(short_chunks.load(), 1) << "only the last chunk may be short";
    }
  }
}

TEST_P(ThreadPoolTest, ManyShortLoopsSeeEachOthersResults) {
  const std::unique_ptr<ThreadPool> pool = MakePool(GetParam());
  std::vector<int64_t> values(97, 0);
  constexpr int kLoops = 3000;
  for (int loop = 0; loop < kLoops; ++loop) {
    // Each loop reads what another thread may have written in the one before.
    std::vector<int64_t> next(values.size());
    pool->ParallelFor(static_cast<int64_t>(values.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto from = static_cast<size_t>(i + 1) % values.size();
        next[static_cast<size_t>(i)] = values[from] + 1;
      }
    });
    values = next;
  }
  for (const int64_t value : values) EXPECT_EQ(value, kLoops);
}

TEST_P(ThreadPoolTest, WakesWorkersThatSleep) {
  const std::unique_ptr<ThreadPool> pool = MakePool(GetParam());
  for (int loop = 0; loop < 5; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than any spin
    std::atomic<int64_t> sum{0};
    pool->ParallelFor(1000, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum += i;
    });
    EXPECT_EQ(sum.load(), 999 * 1000 / 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPool, SleepsUntilASlowChunkOfAnotherThreadEnds) {
  const std::unique_ptr<ThreadPool> pool = MakePool(2);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> worker_has_chunk{false};
  std::atomic<bool> worker_done{false};
  pool->ParallelFor(8, 1, [&](int64_t, int64_t) {
    if (std::this_thread::get_id() != caller) {
      if (!worker_has_chunk.exchange(true)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        worker_done = true;
      }
      return;
    }
    // Leaves work for the other thread until that has some.
    while (!worker_has_chunk.load()) std::this_thread::yield();
  });
  EXPECT_TRUE(worker_done.load());
}

TEST(ThreadPool, StartsAndStopsWithoutWork) {
  for (int i = 0; i < 50; ++i) MakePool(4);
}

}  // namespace
}  // namespace vivarium::kernels
