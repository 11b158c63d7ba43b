// LimitedBackend: a Backend whose memory ends after a number of bytes.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace vivarium::test {

// Passes everything on to `backend`, which must outlive it.
class LimitedBackend final : public kernels::Backend {
 public:
  LimitedBackend(kernels::Backend* backend, size_t max_bytes)
      : backend_(backend), bytes_left_(max_bytes) {}

  // Allocations that were not freed.
  size_t num_live() const { return live_.size(); }

  std::string_view device() const override { return backend_->device(); }
  std::string_view isa() const override { return backend_->isa(); }
  int num_threads() const override { return backend_->num_threads(); }
  std::string numerics_name() const override { return backend_->numerics_name(); }

  void* Allocate(size_t bytes) override {
    if (bytes > bytes_left_) return nullptr;
    void* memory = backend_->Allocate(bytes);
    bytes_left_ -= bytes;
    live_[memory] = bytes;
    return memory;
  }
  void Free(void* memory) override {
    live_.erase(memory);
    backend_->Free(memory);
  }
  std::unique_ptr<kernels::PackedMatrix> Pack(const void* w, kernels::DType from, int64_t rows,
                                              int64_t cols, kernels::DType to) override {
    std::unique_ptr<kernels::PackedMatrix> matrix = backend_->Pack(w, from, rows, cols, to);
    if (matrix->bytes() > bytes_left_) return nullptr;
    bytes_left_ -= matrix->bytes();
    return matrix;
  }
  std::unique_ptr<kernels::PackedMatrix> PackInt8(const int8_t* q, const float* row_scales,
                                                  int64_t rows, int64_t cols) override {
    std::unique_ptr<kernels::PackedMatrix> matrix = backend_->PackInt8(q, row_scales, rows, cols);
    if (matrix->bytes() > bytes_left_) return nullptr;
    bytes_left_ -= matrix->bytes();
    return matrix;
  }
  void CopyToDevice(void* dst, const void* src, size_t bytes) override {
    backend_->CopyToDevice(dst, src, bytes);
  }
  void CopyToHost(void* dst, const void* src, size_t bytes) override {
    backend_->CopyToHost(dst, src, bytes);
  }
  void CopyOnDevice(void* dst, const void* src, size_t bytes) override {
    backend_->CopyOnDevice(dst, src, bytes);
  }
  void Zero(void* memory, size_t bytes) override { backend_->Zero(memory, bytes); }
  void Synchronize() override { backend_->Synchronize(); }
  void EmbeddingGather(const kernels::EmbeddingGatherParams& p) override {
    backend_->EmbeddingGather(p);
  }
  void RmsNorm(const kernels::RmsNormParams& p) override { backend_->RmsNorm(p); }
  void Linear(const kernels::LinearParams& p) override { backend_->Linear(p); }
  void CausalConv1d(const kernels::CausalConv1dParams& p) override { backend_->CausalConv1d(p); }
  void SelectiveScan(const kernels::SelectiveScanParams& p) override { backend_->SelectiveScan(p); }
  void GatherRows(const kernels::GatherRowsParams& p) override { backend_->GatherRows(p); }
  void SampleTokens(const kernels::SampleTokensParams& p) override { backend_->SampleTokens(p); }

 private:
  kernels::Backend* const backend_;
  size_t bytes_left_;
  std::map<void*, size_t> live_;
};

}  // namespace vivarium::test
