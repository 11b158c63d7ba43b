#include "server/write_pump.h"

#include <utility>

namespace vivarium::server {

WritePump::WritePump() : thread_([this] { RunLoop(); }) {}

WritePump::~WritePump() {
  {
    absl::MutexLock lock(&mutex_);
    stops_ = true;
  }
  thread_.join();
}

void WritePump::Ring(std::shared_ptr<Writable> writable) {
  absl::MutexLock lock(&mutex_);
  waiting_.push_back(std::move(writable));
}

void WritePump::RunLoop() {
  for (;;) {
    std::deque<std::shared_ptr<Writable>> batch;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &WritePump::HasWorkOrStops));
      if (waiting_.empty()) return;
      batch.swap(waiting_);
    }
    for (const std::shared_ptr<Writable>& writable : batch) writable->WriteMore();
  }
}

}  // namespace vivarium::server
