// The CPU backend. Each op's method is defined in the file of its name (linear.cc, ...), which
// splits the work over the thread pool; the arithmetic is the chosen path's (op_table.h).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cpu/host_memory.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/thread_pool.h"

namespace vivarium::kernels {

struct FreeDeleter {
  void operator()(void* ptr) const { std::free(ptr); }
};
template <typename T>
using AlignedArray = std::unique_ptr<T[], FreeDeleter>;

// `bytes` (rounded up, at least 64) of uninitialised memory aligned to 64 bytes, or to 2 MiB and
// backed by huge pages where it is large and the system has them. Null when there is none.
void* AllocateAligned(size_t bytes);

class CpuBackend final : public Backend {
 public:
  // As Backend::Create for device "cpu".
  static std::unique_ptr<Backend> Create(const BackendOptions& options, std::string* error);

  std::string_view device() const override { return "cpu"; }
  std::string_view isa() const override { return ops_->isa; }
  int num_threads() const override { return pool_->num_threads(); }
  std::string numerics_name() const override;

  void* Allocate(size_t bytes) override;
  void Free(void* device_ptr) override;
  void CopyToDevice(void* device_dst, const void* host_src, size_t bytes) override;
  void CopyToHost(void* host_dst, const void* device_src, size_t bytes) override;
  void CopyOnDevice(void* device_dst, const void* device_src, size_t bytes) override;
  void Zero(void* device_ptr, size_t bytes) override;
  void Synchronize() override {}
  MemoryInfo Memory() const override { return HostMemory(); }

  std::unique_ptr<PackedMatrix> Pack(const void* w, DType from, int64_t rows, int64_t cols,
                                     DType to) override;
  std::unique_ptr<PackedMatrix> PackInt8(const int8_t* q, const float* row_scales, int64_t rows,
                                         int64_t cols) override;

  void EmbeddingGather(const EmbeddingGatherParams& params) override;
  void RmsNorm(const RmsNormParams& params) override;
  void Linear(const LinearParams& params) override;
  void CausalConv1d(const CausalConv1dParams& params) override;
  void SelectiveScan(const SelectiveScanParams& params) override;
  void GatherRows(const GatherRowsParams& params) override;
  void SampleTokens(const SampleTokensParams& params) override;

 private:
  CpuBackend(const OpTable* ops, std::unique_ptr<ThreadPool> pool)
      : ops_(ops), pool_(std::move(pool)) {}

  // Room for kMaxRoundedRows rows of activations in rounded_, as bf16 or int8; made by Pack, so
  // that a step allocates nothing. False when memory runs out.
  bool ReserveRounded(int64_t padded_cols);
  bool ReserveQuantized(int64_t padded_cols);
  bool ReserveBytes(size_t bytes);
  // Sets panel->x.. to num_rows rows of x as bf16, each padded with zeros to an even length, or as
  // int8, each padded to a multiple of four. Valid until the next call of either.
  void RoundActivations(const float* x, int64_t x_stride, int64_t num_rows, int64_t cols,
                        LinearPanel* panel);
  void QuantizeActivations(const float* x, int64_t x_stride, int64_t num_rows, int64_t cols,
                           LinearPanel* panel);

  const OpTable* const ops_;
  const std::unique_ptr<ThreadPool> pool_;
  AlignedArray<unsigned char> rounded_;
  size_t rounded_bytes_ = 0;
};

}  // namespace vivarium::kernels
