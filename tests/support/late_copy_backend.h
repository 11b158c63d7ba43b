// LateCopyBackend: a FakeBackend whose copies of states take a random number of calls.
#pragma once

#include <cstring>
#include <deque>
#include <random>
#include <string>

#include "tests/support/fake_backend.h"

namespace vivarium::testing {

// A copy is done at some time between its start and the call that reports it done, and until then
// its destination is garbage: whoever reads that too early, or changes the source too early, sees
// it. With a fault, copies that are under way stay garbage.
class LateCopyBackend : public FakeBackend {
 public:
  explicit LateCopyBackend(uint64_t seed) : random_(seed) {}

  kernels::CopyTicket StartCopyToHost(void* dst, const void* src, size_t bytes) override {
    return Start(dst, src, bytes);
  }
  kernels::CopyTicket StartCopyToDevice(void* dst, const void* src, size_t bytes) override {
    return Start(dst, src, bytes);
  }
  bool IsCopyDone(kernels::CopyTicket ticket) override {
    if (!fault_.empty()) return true;
    DoSome();
    return ticket <= num_done_;
  }
  void WaitForCopy(kernels::CopyTicket ticket) override {
    while (fault_.empty() && num_done_ < ticket) DoNext();
  }
  bool copies_overlap() const override { return true; }
  void Synchronize() override { DoSome(); }

  void Fail(const std::string& fault) { fault_ = fault; }
  std::string fault() const override { return fault_; }

 private:
  struct Copy {
    void* dst;
    const void* src;
    size_t bytes;
  };
  kernels::CopyTicket Start(void* dst, const void* src, size_t bytes) {
    constexpr int kGarbage = 0xee;
    std::memset(dst, kGarbage, bytes);
    copies_.push_back({dst, src, bytes});
    if (fault_.empty()) DoSome();
    return num_done_ + copies_.size();
  }
  void DoNext() {
    const Copy& copy = copies_.front();
    std::memcpy(copy.dst, copy.src, copy.bytes);
    copies_.pop_front();
    ++num_done_;
  }
  void DoSome() {
    while (fault_.empty() && !copies_.empty() && random_() % 4 == 0) DoNext();
  }

  std::mt19937_64 random_;
  std::deque<Copy> copies_;
  uint64_t num_done_ = 0;
  std::string fault_;
};

}  // namespace vivarium::testing
