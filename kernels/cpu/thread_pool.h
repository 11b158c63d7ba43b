// A small pool that runs the ranges of one loop at a time on a fixed set of threads.
//
// Work is claimed in chunks, in any order, by whichever thread is free: a loop body must not depend
// on who runs it. Idle workers spin for some microseconds (the gap between two ops of a step), then
// sleep; a worker that the system does not schedule never holds up a loop that others can finish.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace vivarium::kernels {

// Thread-safety: ParallelFor is called by one thread at a time, and not from a loop body.
class ThreadPool {
 public:
  // Starts num_threads - 1 workers (the caller of ParallelFor is the last thread); num_threads
  // >= 1. Null with a sentence in *error when the system has no thread left.
  static std::unique_ptr<ThreadPool> Create(int num_threads, std::string* error);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) on disjoint ranges that cover [0, num_items), each of at least
  // min_items_per_chunk (but for the last one), and returns when all have returned. What the bodies
  // wrote is then visible to the caller. Runs on the caller alone when there is only one chunk.
  template <typename Body>
  void ParallelFor(int64_t num_items, int64_t min_items_per_chunk, const Body& body) {
    Run(num_items, min_items_per_chunk, &body, [](const void* context, int64_t begin, int64_t end) {
      (*static_cast<const Body*>(context))(begin, end);
    });
  }

 private:
  using RangeFn = void (*)(const void* context, int64_t begin, int64_t end);
  struct Loop {
    const void* context;
    RangeFn run;
    int64_t num_items;
    int64_t items_per_chunk;
    uint32_t num_chunks;
    std::atomic<uint32_t> num_unfinished;
  };

  ThreadPool() = default;
  void Run(int64_t num_items, int64_t min_items_per_chunk, const void* context, RangeFn run);
  void WorkerMain();
  // Claims and runs one chunk of the current loop; false when none is left to claim.
  bool RunOneChunk();
  bool HasWork() const;
  void AwaitWork();
  void AwaitFinish(const Loop& loop);

  // claim_ = loop number << 32 | chunks not yet claimed. A claim is one compare-and-swap, so a
  // worker that read `loop_` too early or too late fails it: the loop number has moved on, and
  // a Loop outlives its last unfinished chunk.
  std::atomic<uint64_t> claim_{0};
  std::atomic<Loop*> loop_{nullptr};
  std::atomic<int> num_sleeping_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stopping_{false};
  std::mutex
      mutex_;  // guards nothing but the two sleeps: no wake-up is lost between check and wait
  std::condition_variable work_ready_;
  std::condition_variable loop_finished_;
  std::vector<std::thread> workers_;
};

}  // namespace vivarium::kernels
