#include "server/executor.h"

#include <utility>

namespace vivarium::server {

Executor::Executor(int num_threads, size_t max_new) : max_new_(max_new) {
  threads_.reserve(static_cast<size_t>(num_threads));
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { RunLoop(); });
}

Executor::~Executor() {
  {
    absl::MutexLock lock(&mutex_);
    stops_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

bool Executor::TryRun(Work work) {
  absl::MutexLock lock(&mutex_);
  if (new_.size() >= max_new_) return false;
  new_.push_back(std::move(work));
  return true;
}

void Executor::Continue(Work work) {
  absl::MutexLock lock(&mutex_);
  admitted_.push_back(std::move(work));
}

void Executor::WaitUntilIdle() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &Executor::IsIdle));
}

bool Executor::HasWorkOrStops() const { return !admitted_.empty() || !new_.empty() || stops_; }

bool Executor::IsIdle() const { return admitted_.empty() && new_.empty() && num_running_ == 0; }

void Executor::RunLoop() {
  for (;;) {
    Work work;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &Executor::HasWorkOrStops));
      std::deque<Work>& queue = admitted_.empty() ? new_ : admitted_;
      if (queue.empty()) return;
      work = std::move(queue.front());
      queue.pop_front();
      ++num_running_;
    }
    work();
    work = nullptr;  // what it owns goes before the executor counts as idle
    absl::MutexLock lock(&mutex_);
    --num_running_;
  }
}

}  // namespace vivarium::server
