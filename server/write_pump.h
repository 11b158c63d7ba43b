// WritePump: one thread that writes to the streams which have something to say. The engine's
// thread only puts tokens into buffers and rings here: serialising and sending is not its work.
#pragma once

#include <deque>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace vivarium::server {

// Something that can write. Shared: a call may end while it waits here.
class Writable {
 public:
  virtual ~Writable() = default;
  // Called on the pump's thread; must not block.
  virtual void WriteMore() = 0;
};

// Thread-safe. Whoever rings must not be waiting already, so as many wait as there are calls.
class WritePump {
 public:
  WritePump();
  ~WritePump();  // what waits is still called
  WritePump(const WritePump&) = delete;
  WritePump& operator=(const WritePump&) = delete;

  void Ring(std::shared_ptr<Writable> writable) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void RunLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWorkOrStops() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return !waiting_.empty() || stops_;
  }

  absl::Mutex mutex_;
  std::deque<std::shared_ptr<Writable>> waiting_ ABSL_GUARDED_BY(mutex_);
  bool stops_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace vivarium::server
