#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <cassert>
#include <system_error>

namespace vivarium::kernels {
namespace {

// Pauses before a thread sleeps: some 20-50 microseconds, longer than the gap between two ops.
constexpr int kSpinPauses = 1500;
// Chunks per thread: enough that a thread which is late or slow leaves its share to the others.
constexpr int64_t kChunksPerThread = 4;
constexpr uint64_t kUnclaimedMask = 0xffffffffu;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

std::unique_ptr<ThreadPool> ThreadPool::Create(int num_threads, std::string* error) {
  assert(num_threads >= 1);
  std::unique_ptr<ThreadPool> pool(new ThreadPool);
  pool->workers_.reserve(static_cast<size_t>(num_threads) - 1);
  try {
    for (int i = 1; i < num_threads; ++i) {
      pool->workers_.emplace_back([raw = pool.get()] { raw->WorkerMain(); });
    }
  } catch (const std::system_error& e) {
    *error = "cannot start " + std::to_string(num_threads) + " CPU threads: " + e.what();
    return nullptr;  // the destructor joins those that did start
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  { const std::lock_guard<std::mutex> lock(mutex_); }
  work_ready_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::HasWork() const {
  return (claim_.load() & kUnclaimedMask) != 0 || stopping_.load();
}

bool ThreadPool::RunOneChunk() {
  uint64_t claim = claim_.load(std::memory_order_acquire);
  for (;;) {
    if ((claim & kUnclaimedMask) == 0) return false;
    Loop* const loop = loop_.load(std::memory_order_acquire);
    if (!claim_.compare_exchange_weak(claim, claim - 1, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      continue;
    }
    const auto unclaimed = static_cast<int64_t>(claim & kUnclaimedMask);
    const int64_t begin = (loop->num_chunks - unclaimed) * loop->items_per_chunk;
    const int64_t end = std::min(begin + loop->items_per_chunk, loop->num_items);
    loop->run(loop->context, begin, end);
    // After the last decrement the caller may return, so the loop is not touched again.
    if (loop->num_unfinished.fetch_sub(1) == 1 && caller_sleeps_.load()) {
      { const std::lock_guard<std::mutex> lock(mutex_); }
      loop_finished_.notify_one();
    }
    return true;
  }
}

void ThreadPool::AwaitWork() {
  for (int i = 0; i < kSpinPauses; ++i) {
    if (HasWork()) return;
    Pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  num_sleeping_.fetch_add(1);
  work_ready_.wait(lock, [this] { return HasWork(); });
  num_sleeping_.fetch_sub(1);
}

void ThreadPool::WorkerMain() {
  while (!stopping_.load()) {
    if (!RunOneChunk()) AwaitWork();
  }
}

void ThreadPool::AwaitFinish(const Loop& loop) {
  for (int i = 0; i < kSpinPauses; ++i) {
    if (loop.num_unfinished.load() == 0) return;
    Pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeps_.store(true);
  loop_finished_.wait(lock, [&loop] { return loop.num_unfinished.load() == 0; });
  caller_sleeps_.store(false);
}

void ThreadPool::Run(int64_t num_items, int64_t min_items_per_chunk, const void* context,
                     RangeFn run) {
  assert(min_items_per_chunk >= 1);
  if (num_items <= 0) return;
  const int64_t max_chunks = workers_.empty() ? 1 : num_threads() * kChunksPerThread;
  const int64_t items_per_chunk =
      std::max(min_items_per_chunk, (num_items + max_chunks - 1) / max_chunks);
  const int64_t num_chunks = (num_items + items_per_chunk - 1) / items_per_chunk;
  if (num_chunks == 1) {
    run(context, 0, num_items);
    return;
  }
  Loop loop{context,
            run,
            num_items,
            items_per_chunk,
            static_cast<uint32_t>(num_chunks),
            {static_cast<uint32_t>(num_chunks)}};
  const uint64_t next_loop = (claim_.load(std::memory_order_relaxed) >> 32) + 1;
  loop_.store(&loop, std::memory_order_release);
  claim_.store(next_loop << 32 | static_cast<uint64_t>(num_chunks));
  if (num_sleeping_.load() > 0) {
    { const std::lock_guard<std::mutex> lock(mutex_); }
    work_ready_.notify_all();
  }
  while (RunOneChunk()) {
  }
  AwaitFinish(loop);
}

}  // namespace vivarium::kernels
