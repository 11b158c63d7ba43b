// DeviceFault: the first failure of a device, kept for good.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "kernels/cuda/device.h"

namespace vivarium::kernels::cuda {

// A device that fails has lost its states' bytes, and nothing that it says from then on can be
// trusted; what is durable is in the store. Thread-safe.
class DeviceFault {
 public:
  // Whether all is well; keeps `error` as the fault if it is one, and the first.
  bool Check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
      const std::lock_guard lock(mutex_);
      if (text_.empty()) text_ = std::string(what) + ": " + cudaGetErrorString(error);
      is_set_.store(true, std::memory_order_release);
    }
    return !is_set();
  }
  bool is_set() const { return is_set_.load(std::memory_order_acquire); }
  std::string text() const {
    const std::lock_guard lock(mutex_);
    return text_;
  }

 private:
  std::atomic<bool> is_set_{false};
  mutable std::mutex mutex_;
  std::string text_;
};

}  // namespace vivarium::kernels::cuda
