// Tells ThreadSanitizer what absl's locks order. Debian's libabsl is not instrumented, so the
// sanitizer can't see that Lock comes after Unlock, and would report every guarded field as a race.
// These definitions stand before the library's, announce the order, and call on. Linked into tests
// when VIVARIUM_SANITIZER is "thread"; they are about absl's mutex alone and hide no other race.
#include <dlfcn.h>

#include <cstdlib>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// The library's own definition of a symbol that this file defines too.
template <typename Function>
Function* Next(const char* symbol) {
  void* found = dlsym(RTLD_NEXT, symbol);
  if (found == nullptr) std::abort();
  return reinterpret_cast<Function*>(found);
}

// Unlock evaluates the waiters' conditions while it still holds the lock: reads that the release
// announced before it would not cover. So does Await, each time that it wakes and waits again.
class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

#define VIVARIUM_ABSL "_ZN4absl7debian3"

void Mutex::Lock() {
  static auto* const next = Next<void(Mutex*)>(VIVARIUM_ABSL "5Mutex4LockEv");
  next(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static auto* const next = Next<bool(Mutex*)>(VIVARIUM_ABSL "5Mutex7TryLockEv");
  const bool locked = next(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static auto* const next = Next<void(Mutex*)>(VIVARIUM_ABSL "5Mutex6UnlockEv");
  __tsan_release(this);
  const IgnoreReads ignore;
  next(this);
}

void Mutex::ReaderLock() {
  static auto* const next = Next<void(Mutex*)>(VIVARIUM_ABSL "5Mutex10ReaderLockEv");
  next(this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  static auto* const next = Next<void(Mutex*)>(VIVARIUM_ABSL "5Mutex12ReaderUnlockEv");
  __tsan_release(this);
  const IgnoreReads ignore;
  next(this);
}

void Mutex::Await(const Condition& condition) {
  static auto* const next =
      Next<void(Mutex*, const Condition&)>(VIVARIUM_ABSL "5Mutex5AwaitERKNS0_9ConditionE");
  __tsan_release(this);
  {
    const IgnoreReads ignore;
    next(this, condition);
  }
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const next = Next<bool(Mutex*, const Condition&, Duration)>(
      VIVARIUM_ABSL "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  __tsan_release(this);
  const bool held = [&] {
    const IgnoreReads ignore;
    return next(this, condition, timeout);
  }();
  __tsan_acquire(this);
  return held;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static auto* const next = Next<bool(Mutex*, const Condition&, Time)>(
      VIVARIUM_ABSL "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  __tsan_release(this);
  const bool held = [&] {
    const IgnoreReads ignore;
    return next(this, condition, deadline);
  }();
  __tsan_acquire(this);
  return held;
}

void Mutex::LockWhen(const Condition& condition) {
  static auto* const next =
      Next<void(Mutex*, const Condition&)>(VIVARIUM_ABSL "5Mutex8LockWhenERKNS0_9ConditionE");
  {
    const IgnoreReads ignore;
    next(this, condition);
  }
  __tsan_acquire(this);
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const next =
      Next<void(CondVar*, Mutex*)>(VIVARIUM_ABSL "7CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  next(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static auto* const next = Next<bool(CondVar*, Mutex*, Duration)>(
      VIVARIUM_ABSL "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  const bool timed_out = next(this, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const next = Next<bool(CondVar*, Mutex*, Time)>(
      VIVARIUM_ABSL "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool timed_out = next(this, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

void Notification::Notify() {
  static auto* const next = Next<void(Notification*)>(VIVARIUM_ABSL "12Notification6NotifyEv");
  __tsan_release(this);
  next(this);
}

void Notification::WaitForNotification() const {
  static auto* const next =
      Next<void(const Notification*)>("_ZNK4absl7debian312Notification19WaitForNotificationEv");
  next(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

#undef VIVARIUM_ABSL

ABSL_NAMESPACE_END
}  // namespace absl
