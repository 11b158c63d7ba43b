// Products of many rows by bf16 weights through cuBLASLt: for prefill and large batches, where the
// bits may depend on the number of rows.
//
// The library wants weights row-major, [rows][pitch] bf16, beside the fragments that the own
// kernels read (linear.cuh), so weights are held twice; and activations in bf16, which a kernel
// rounds into a buffer of kMaxLibraryRows rows. What to run is asked of the library once per shape,
// for the number of rows rounded up to a power of two, and kept; workspace and buffer are allocated
// when weights are packed. So a step allocates nothing, and may be recorded.
#pragma once

#include <bit>
#include <map>
#include <memory>
#include <tuple>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cublaslt_check.h"
#include "kernels/cuda/linear.cuh"

namespace vivarium::kernels::cuda {

inline constexpr int64_t kMinLibraryRows = kSmallTokens + 1;
inline constexpr int64_t kMaxLibraryRows = 4096;  // at a time
inline constexpr size_t kLibraryWorkspaceBytes = 32 << 20;
inline constexpr int kRoundThreads = 256;

// From row to row of bf16 operands: sixteen bytes.
__host__ __device__ inline int64_t LibraryPitch(int64_t cols) { return (cols + 7) / 8 * 8; }

// rounded [num_tokens][LibraryPitch(cols)] = x, zeros in the padding. Grid (num_tokens),
// kRoundThreads threads.
static __global__ void RoundRowsKernel(const float* x, int64_t x_stride, int64_t cols,
                                       uint16_t* rounded) {
  const int64_t token = blockIdx.x;
  const int64_t pitch = LibraryPitch(cols);
  for (int64_t k = threadIdx.x; k < pitch; k += kRoundThreads) {
    rounded[token * pitch + k] = k < cols ? FloatToBF16Bits(x[token * x_stride + k]) : 0;
  }
}

class LibraryLinear {
 public:
  explicit LibraryLinear(std::unique_ptr<CublasLt> library) : library_(std::move(library)) {}
  ~LibraryLinear() {
    for (auto& [shape, plan] : plans_) Destroy(&plan);
    cudaFree(rounded_);
    cudaFree(workspace_);
  }
  LibraryLinear(const LibraryLinear&) = delete;
  LibraryLinear& operator=(const LibraryLinear&) = delete;

  // Room for products by weights of `cols`. False when memory runs out. No product may be on its
  // way.
  bool Reserve(int64_t cols) {
    if (!workspace_ && !Allocate(kLibraryWorkspaceBytes, &workspace_)) return false;
    const size_t bytes = kMaxLibraryRows * LibraryPitch(cols) * sizeof(uint16_t);
    if (bytes <= rounded_bytes_) return true;
    cudaFree(rounded_);
    rounded_ = nullptr;
    rounded_bytes_ = 0;
    if (!Allocate(bytes, &rounded_)) return false;
    rounded_bytes_ = bytes;
    return true;
  }

  // weight: [rows][LibraryPitch(cols)] bf16 on the device. False, with the rows from
  // *num_done on not computed, where the library won't: the own kernels will.
  bool Run(const LinearArguments& arguments, const void* weight, cudaStream_t stream,
           int64_t* num_done) {
    for (*num_done = 0; *num_done < arguments.num_tokens;) {
      LinearArguments block = arguments;
      block.x += *num_done * arguments.x_stride;
      block.out += *num_done * arguments.out_stride;
      block.num_tokens = arguments.num_tokens - *num_done < kMaxLibraryRows
                             ? arguments.num_tokens - *num_done
                             : kMaxLibraryRows;
      if (!RunBlock(block, weight, stream)) return false;
      *num_done += block.num_tokens;
    }
    return true;
  }

 private:
  static constexpr uint32_t kAlignment = 16;
  // Row bucket, rows of weights, cols, out_stride, whether there is a bias.
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;
  struct Plan {
    void* desc = nullptr;
    void* weight = nullptr;  // layouts, in the library's column-major words: [pitch, rows]
    void* x = nullptr;       // [pitch, tokens]
    void* out = nullptr;     // [rows, tokens]
    cublaslt::Algorithm algorithm{};
    bool is_served = false;
  };

  static bool Allocate(size_t bytes, void** pointer) {
    if (cudaMalloc(pointer, bytes) == cudaSuccess) return true;
    cudaGetLastError();  // out of memory is an answer, not a fault: clear it
    *pointer = nullptr;
    return false;
  }
  void Destroy(Plan* plan) {
    if (plan->desc) library_->desc_destroy(plan->desc);
    for (void* layout : {plan->weight, plan->x, plan->out}) {
      if (layout) library_->layout_destroy(layout);
    }
  }
  Plan MakePlan(const Shape& shape);
  bool Choose(Plan* plan);
  bool RunBlock(const LinearArguments& arguments, const void* weight, cudaStream_t stream);

  const std::unique_ptr<CublasLt> library_;
  std::map<Shape, Plan> plans_;
  void* workspace_ = nullptr;
  void* rounded_ = nullptr;
  size_t rounded_bytes_ = 0;
};

inline LibraryLinear::Plan LibraryLinear::MakePlan(const Shape& shape) {
  using namespace cublaslt;
  const auto& [bucket, rows, cols, out_stride, has_bias] = shape;
  const int64_t pitch = LibraryPitch(cols);
  const int transpose = kTranspose;
  const int epilogue = has_bias ? kEpilogueBias : kEpilogueDefault;
  const CublasLt& lib = *library_;
  Plan plan;
  const auto made = [](int status) { return status == kSuccess; };
  plan.is_served = made(lib.desc_create(&plan.desc, kCompute32F, cublaslt::kF32)) &&
                   made(lib.desc_set(plan.desc, kDescTransA, &transpose, sizeof(transpose))) &&
                   made(lib.desc_set(plan.desc, kDescEpilogue, &epilogue, sizeof(epilogue))) &&
                   made(lib.layout_create(&plan.weight, cublaslt::kBF16, pitch, rows, pitch)) &&
                   made(lib.layout_create(&plan.x, cublaslt::kBF16, pitch, bucket, pitch)) &&
                   made(lib.layout_create(&plan.out, cublaslt::kF32, rows, bucket, out_stride)) &&
                   Choose(&plan);
  return plan;
}

inline bool LibraryLinear::Choose(Plan* plan) {
  using namespace cublaslt;
  const CublasLt& lib = *library_;
  void* preference = nullptr;
  if (lib.preference_create(&preference) != kSuccess) return false;
  const uint64_t workspace_bytes = kLibraryWorkspaceBytes;
  lib.preference_set(preference, kPreferenceMaxWorkspaceBytes, &workspace_bytes,
                     sizeof(workspace_bytes));
  for (const int attribute : {kPreferenceMinAlignmentC, kPreferenceMinAlignmentD}) {
    lib.preference_set(preference, attribute, &kAlignment, sizeof(kAlignment));
  }
  Heuristic result{};
  int found = 0;
  const int status = lib.heuristic(lib.handle(), plan->desc, plan->weight, plan->x, plan->out,
                                   plan->out, preference, 1, &result, &found);
  lib.preference_destroy(preference);
  plan->algorithm = result.algorithm;
  return status == kSuccess && found == 1 && result.state == kSuccess;
}

inline bool LibraryLinear::RunBlock(const LinearArguments& arguments, const void* weight,
                                    cudaStream_t stream) {
  const bool is_aligned = reinterpret_cast<uintptr_t>(arguments.out) % kAlignment == 0;
  if (!is_aligned) return false;
  const auto bucket =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(arguments.num_tokens)));
  const Shape shape(bucket, arguments.rows, arguments.cols, arguments.out_stride,
                    arguments.bias != nullptr);
  auto entry = plans_.find(shape);
  if (entry == plans_.end()) entry = plans_.emplace(shape, MakePlan(shape)).first;
  const Plan& plan = entry->second;
  if (!plan.is_served) return false;

  const CublasLt& lib = *library_;
  const auto tokens = static_cast<uint64_t>(arguments.num_tokens);
  lib.layout_set(plan.x, cublaslt::kLayoutCols, &tokens, sizeof(tokens));
  lib.layout_set(plan.out, cublaslt::kLayoutCols, &tokens, sizeof(tokens));
  if (arguments.bias) {
    lib.desc_set(plan.desc, cublaslt::kDescBiasPointer, &arguments.bias, sizeof(arguments.bias));
  }
  auto* const rounded = static_cast<uint16_t*>(rounded_);
  LAUNCH(RoundRowsKernel, dim3(static_cast<unsigned>(arguments.num_tokens)), dim3(kRoundThreads), 0,
         stream, arguments.x, arguments.x_stride, arguments.cols, rounded);
  const float one = 1.0f, zero = 0.0f;
  return lib.matmul(lib.handle(), plan.desc, &one, weight, plan.weight, rounded, plan.x, &zero,
                    arguments.out, plan.out, arguments.out, plan.out, &plan.algorithm, workspace_,
                    kLibraryWorkspaceBytes, stream) == cublaslt::kSuccess;
}

}  // namespace vivarium::kernels::cuda
