// DeviceMemory: an owned span of a Backend's memory.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/backend.h"

namespace vivarium::engine {

// Move-only. Must not outlive its Backend. Freed when destroyed.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Null data() when the device has no memory left. Zeroed, 64-byte aligned.
  DeviceMemory(kernels::Backend* backend, size_t bytes)
      : backend_(backend), data_(backend->Allocate(bytes)), bytes_(bytes) {}
  DeviceMemory(DeviceMemory&& other) noexcept
      : backend_(other.backend_),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) backend_->Free(data_);
  }

  void* data() const { return data_; }
  float* f32() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  kernels::Backend* backend_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace vivarium::engine
