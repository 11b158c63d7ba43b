// Backend: a device that holds memory and runs ops. Start here, then ops.h for what each op
// computes.
//
// Thread-safety: one thread at a time (the engine's) calls a Backend, and calls BindThread first if
// it is not the one that made it; a Backend may use threads of its own inside an op. Every op is
// complete, and its results visible, after Synchronize(); on the CPU each op is complete when it
// returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/dtype.h"
#include "kernels/ops.h"

namespace vivarium::kernels {

// What one Backend is made with.
struct BackendOptions {
  // CPU worker threads, the caller included. 0 = one per available core. At most kMaxThreads.
  int num_threads = 0;
  // CPU instruction-set path: "" = the best that this processor has, else exactly one of
  // "portable", "avx2", "avx512" (AVX-512 F/BW/VL/DQ + AVX512-BF16, VNNI).
  std::string isa = {};
  // CUDA: whether a row's bits may not depend on the rows beside it, as they never do on the CPU.
  // False: products of many rows by bf16 weights are cuBLASLt's, where it is found.
  bool deterministic = false;
  // CUDA: cuBLASLt's file. "" = libcublasLt.so.13, .12 or .11, wherever the loader finds it.
  std::string cublaslt = {};
};

inline constexpr int kMaxThreads = 256;

// A device's memory; zeros where it is not known.
struct MemoryInfo {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};

// An asynchronous copy. Later copies have greater tickets, and are done later.
using CopyTicket = uint64_t;

// A weight matrix W [rows, cols] in the backend's own packed layout, made by Backend::Pack.
// Owned by whoever holds it; must not outlive its Backend.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
  virtual DType dtype() const = 0;   // kBF16, kF32 or kI8
  virtual size_t bytes() const = 0;  // device memory held
};

// A sequence of ops with their params, made by Backend::EndRecording. Must not outlive its Backend.
class Recording {
 public:
  virtual ~Recording() = default;
};

class Backend {
 public:
  // device: "cpu" ("cuda:N" where a CUDA backend is built in). Returns null and sets *error (never
  // null) to a sentence that names the offending value when the device or an option is unknown or
  // not available on this machine.
  static std::unique_ptr<Backend> Create(std::string_view device, const BackendOptions& options,
                                         std::string* error);
  virtual ~Backend() = default;

  virtual void BindThread() {}

  virtual std::string_view device() const = 0;  // "cpu"
  virtual std::string_view isa() const = 0;     // "portable", "avx2", "avx512"
  virtual int num_threads() const = 0;
  // Identifies everything that decides the low bits of results, but the weight dtype:
  // "cpu-avx2-v1" = device, instruction-set path, kernel version. Never depends on num_threads.
  virtual std::string numerics_name() const = 0;
  // A sentence for the log on how this backend was made ("" = nothing to say).
  virtual std::string notice() const { return {}; }

  // Device memory, aligned to 64 bytes, zeroed. Null when there is none left. Free(nullptr) is
  // legal.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* device_ptr) = 0;
  virtual void CopyToDevice(void* device_dst, const void* host_src, size_t bytes) = 0;
  virtual void CopyToHost(void* host_dst, const void* device_src, size_t bytes) = 0;
  virtual void CopyOnDevice(void* device_dst, const void* device_src, size_t bytes) = 0;
  virtual void Zero(void* device_ptr, size_t bytes) = 0;
  virtual void Synchronize() = 0;

  // Host memory that the device reads by itself (page-locked where that means something), aligned
  // to 64 bytes, uninitialised. Null when there is none left. FreeHost(nullptr) is legal.
  virtual void* AllocateHost(size_t bytes);
  virtual void FreeHost(void* host_ptr);
  // As CopyToDevice, but host_src is AllocateHost's memory, and must stay as it is until
  // Synchronize.
  virtual void CopyToDeviceAsync(void* device_dst, const void* host_src, size_t bytes) {
    CopyToDevice(device_dst, host_src, bytes);
  }

  // Copies beside the ops, of whole states. A copy begins when what was called before it is
  // complete; what is called after it does not wait for it. So, until it is done, nobody may write
  // the source or use the destination. Host memory may be of any kind. On the CPU, done on return.
  virtual CopyTicket StartCopyToHost(void* host_dst, const void* device_src, size_t bytes) {
    CopyToHost(host_dst, device_src, bytes);
    return 0;
  }
  virtual CopyTicket StartCopyToDevice(void* device_dst, const void* host_src, size_t bytes) {
    CopyToDevice(device_dst, host_src, bytes);
    return 0;
  }
  // Never blocks.
  virtual bool IsCopyDone(CopyTicket) { return true; }
  virtual void WaitForCopy(CopyTicket) {}
  // Whether copies may still be under way when StartCopy... returns.
  virtual bool copies_overlap() const { return false; }

  // The device's; of the CPU what this process may still take. Thread-safe.
  virtual MemoryInfo Memory() const { return {}; }
  // "" while the device works; else its first failure, for good: from then on ops do nothing, what
  // is in memory is worth nothing, and every copy counts as done. Thread-safe. Whoever uses results
  // asks after they are complete. Running out of memory is no fault.
  virtual std::string fault() const { return {}; }

  // Recording and replay of a step (CUDA graphs): between BeginRecording and EndRecording ops are
  // taken down, with their params as they are then, and not run; nothing but ops may be called.
  // Replay runs them, in order, as if they were called. BeginRecording returns false, and changes
  // nothing, on a device where that saves nothing; EndRecording returns null when memory runs out.
  virtual bool BeginRecording() { return false; }
  virtual std::unique_ptr<Recording> EndRecording() { return nullptr; }
  virtual void Replay(const Recording&) {}

  // Packs host matrix `w` [rows, cols], row-major, any alignment, of dtype `from` (f32, bf16, f16),
  // to `to` (bf16: round to nearest even; f32). Null when memory runs out.
  virtual std::unique_ptr<PackedMatrix> Pack(const void* w, DType from, int64_t rows, int64_t cols,
                                             DType to) = 0;
  // Packs W = row_scales[rows] * q [rows, cols], as kernels/quantize.h makes it. Null when memory
  // runs out.
  virtual std::unique_ptr<PackedMatrix> PackInt8(const int8_t* q, const float* row_scales,
                                                 int64_t rows, int64_t cols) = 0;

  // The ops: documented with their params structs in ops.h.
  virtual void EmbeddingGather(const EmbeddingGatherParams& params) = 0;
  virtual void RmsNorm(const RmsNormParams& params) = 0;
  virtual void Linear(const LinearParams& params) = 0;
  virtual void CausalConv1d(const CausalConv1dParams& params) = 0;
  virtual void SelectiveScan(const SelectiveScanParams& params) = 0;
  virtual void GatherRows(const GatherRowsParams& params) = 0;
  virtual void SampleTokens(const SampleTokensParams& params) = 0;
  // Fused ops: false, with nothing done, where this backend has no fused form for these params (the
  // CPU never has one); the ops above do the same.
  virtual bool MambaDecode(const MambaDecodeParams&) { return false; }
  virtual bool NormLinear(const NormLinearParams&) { return false; }
};

}  // namespace vivarium::kernels
