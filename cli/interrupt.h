// Ctrl-C and SIGTERM as events instead of death.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace vivarium::cli {

// SIGINT and SIGTERM no longer end the process; they wait for an InterruptWatcher or a reader of
// OpenInterruptDescriptor. Call before any thread is started: threads inherit it.
void BlockInterrupts();

// A descriptor that is readable while an interrupt waits, for poll(); -1 when the system has none.
int OpenInterruptDescriptor();

// While it lives, the first interrupt calls `on_interrupt` on a thread of its own, and a second one
// ends the process at once with `second_exit_code`. Needs BlockInterrupts.
class InterruptWatcher {
 public:
  InterruptWatcher(std::function<void()> on_interrupt, int second_exit_code);
  ~InterruptWatcher();
  InterruptWatcher(const InterruptWatcher&) = delete;
  InterruptWatcher& operator=(const InterruptWatcher&) = delete;

  bool fired() const { return fired_; }

 private:
  void Watch();

  const std::function<void()> on_interrupt_;
  const int second_exit_code_;
  std::atomic<bool> fired_ = false;
  int signal_fd_;
  int stop_fd_;
  std::thread thread_;
};

}  // namespace vivarium::cli
