// FakeBackend: a Backend that is host memory alone; of the ops, it only samples.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"

namespace vivarium::testing {

// Counts allocations, so that a test can tell whether any is left, or any was made too late.
class FakeBackend : public kernels::Backend {
 public:
  std::string_view device() const override { return device_name; }
  std::string_view isa() const override { return "portable"; }
  int num_threads() const override { return 1; }
  std::string numerics_name() const override { return "fake-v1"; }

  void* Allocate(size_t bytes) override {
    if (bytes > max_allocation_bytes) return nullptr;
    const size_t rounded_bytes = (bytes + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, rounded_bytes);
    if (memory == nullptr) return nullptr;
    std::memset(memory, 0, rounded_bytes);
    ++num_allocations;
    return memory;
  }
  void Free(void* device_ptr) override {
    num_frees += device_ptr != nullptr;
    std::free(device_ptr);
  }
  void CopyToDevice(void* dst, const void* src, size_t bytes) override {
    std::memcpy(dst, src, bytes);
  }
  void CopyToHost(void* dst, const void* src, size_t bytes) override {
    std::memcpy(dst, src, bytes);
  }
  void CopyOnDevice(void* dst, const void* src, size_t bytes) override {
    std::memcpy(dst, src, bytes);
  }
  void Zero(void* device_ptr, size_t bytes) override { std::memset(device_ptr, 0, bytes); }
  void Synchronize() override {}

  std::unique_ptr<kernels::PackedMatrix> Pack(const void*, kernels::DType, int64_t, int64_t,
                                              kernels::DType) override {
    return nullptr;
  }
  std::unique_ptr<kernels::PackedMatrix> PackInt8(const int8_t*, const float*, int64_t,
                                                  int64_t) override {
    return nullptr;
  }
  void EmbeddingGather(const kernels::EmbeddingGatherParams&) override { std::abort(); }
  void RmsNorm(const kernels::RmsNormParams&) override { std::abort(); }
  void Linear(const kernels::LinearParams&) override { std::abort(); }
  void CausalConv1d(const kernels::CausalConv1dParams&) override { std::abort(); }
  void SelectiveScan(const kernels::SelectiveScanParams&) override { std::abort(); }
  void GatherRows(const kernels::GatherRowsParams&) override { std::abort(); }
  void SampleTokens(const kernels::SampleTokensParams& params) override {
    if (sampler_ == nullptr) {
      std::string error;
      sampler_ = kernels::Backend::Create("cpu", {.num_threads = 1, .isa = "portable"}, &error);
    }
    sampler_->SampleTokens(params);
  }

  kernels::MemoryInfo Memory() const override { return memory; }

  std::string_view device_name = "fake";
  kernels::MemoryInfo memory;  // not known
  size_t max_allocation_bytes = size_t{1} << 30;
  int num_allocations = 0;
  int num_frees = 0;

 private:
  std::unique_ptr<kernels::Backend> sampler_;
};

}  // namespace vivarium::testing
