#include "cli/interrupt.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

namespace vivarium::cli {
namespace {

sigset_t InterruptSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

}  // namespace

void BlockInterrupts() {
  const sigset_t signals = InterruptSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

int OpenInterruptDescriptor() {
  const sigset_t signals = InterruptSignals();
  return signalfd(-1, &signals, SFD_CLOEXEC);
}

InterruptWatcher::InterruptWatcher(std::function<void()> on_interrupt, int second_exit_code)
    : on_interrupt_(std::move(on_interrupt)),
      second_exit_code_(second_exit_code),
      signal_fd_(OpenInterruptDescriptor()),
      stop_fd_(eventfd(0, EFD_CLOEXEC)),
      thread_([this] { Watch(); }) {}

InterruptWatcher::~InterruptWatcher() {
  const uint64_t one = 1;
  (void)!write(stop_fd_, &one, sizeof(one));
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

void InterruptWatcher::Watch() {
  while (true) {
    pollfd events[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (poll(events, 2, -1) < 0) continue;
    if (events[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    if (fired_.exchange(true)) _exit(second_exit_code_);
    on_interrupt_();
  }
}

}  // namespace vivarium::cli
