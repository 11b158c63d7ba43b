// What device code is written in: CUDA, or the same sources as host C++ for tests (the compiler
// then finds <cuda_on_cpu.h>; tests/cuda_on_cpu). Only these differ:
//   LAUNCH(kernel, grid, block, shared_bytes, stream, ...)   kernel<<<...>>>(...)
//   DYNAMIC_SHARED(T, name)                                  the block's dynamic shared memory
//   LaunchDependent(...)                                     the same, with a dependent launch
//   the wrappers below, which hold all inline PTX
// Kernels use no static shared memory, and all PTX is in this file.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  T* name = reinterpret_cast<T*>(name##_)
#else
#include <cuda_on_cpu.h>
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), ::cuda_on_cpu::Launch(grid, block, shared_bytes, [=] { kernel(__VA_ARGS__); }))
// NOLINTNEXTLINE(bugprone-macro-parentheses): T is a type
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::cuda_on_cpu::SharedMemory())
#endif

namespace vivarium::kernels::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

// ------ bf16, as its 16 bits

__device__ __forceinline__ float BF16BitsToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest even; NaN stays NaN.
__device__ __forceinline__ uint16_t FloatToBF16Bits(float value) {
#if defined(__CUDACC__)
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// Two neighbours in K, the lower one in the lower half.
__device__ __forceinline__ uint32_t PackBF16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return static_cast<uint32_t>(FloatToBF16Bits(low)) | static_cast<uint32_t>(FloatToBF16Bits(high))
                                                           << 16;
#endif
}

// ------ warp collectives

// The sum over the warp's lanes in one fixed order (butterfly); every lane gets it.
__device__ __forceinline__ float WarpSum(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(kFullWarp, value, mask);
  return value;
}

// Fragments of mma.sync.m16n8k16 (PTX ISA), with g = lane / 4 and t = lane % 4:
//   a  [row g | k 2t,2t+1] [row g+8 | k 2t,2t+1] [row g | k 2t+8,2t+9] [row g+8 | k 2t+8,2t+9]
//   b  [k 2t,2t+1 | column g] [k 2t+8,2t+9 | column g]
//   c  [row g | columns 2t, 2t+1] [row g+8 | columns 2t, 2t+1]
struct MmaA {
  uint32_t pairs[4];
};
struct MmaB {
  uint32_t pairs[2];
};
struct alignas(16) MmaC {
  float values[4];
};

// c += a * b: 16x16 by 16x8, bf16 in, f32 out. All lanes of the warp take part.
__device__ __forceinline__ void MmaBF16(MmaC& c, const MmaA& a, const MmaB& b) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b.pairs[0]),
        "r"(b.pairs[1]));
#else
  MmaA all_a[kWarpSize];
  MmaB all_b[kWarpSize];
  ::cuda_on_cpu::WarpGather(&a, sizeof(a), all_a, {__FILE__, __LINE__});
  ::cuda_on_cpu::WarpGather(&b, sizeof(b), all_b, {__FILE__, __LINE__});
  const int lane = ::cuda_on_cpu::LaneIndex();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0);
    const int column = lane % 4 * 2 + i % 2;
    double sum = c.values[i];
    for (int k = 0; k < 16; ++k) {
      const int shift = k % 2 * 16;
      const int t = k % 8 / 2;
      const uint32_t a_pair = all_a[row % 8 * 4 + t].pairs[(k >= 8 ? 2 : 0) + (row >= 8 ? 1 : 0)];
      const uint32_t b_pair = all_b[column * 4 + t].pairs[k >= 8 ? 1 : 0];
      sum += static_cast<double>(BF16BitsToFloat(static_cast<uint16_t>(a_pair >> shift))) *
             BF16BitsToFloat(static_cast<uint16_t>(b_pair >> shift));
    }
    c.values[i] = static_cast<float>(sum);
  }
#endif
}

// ------ programmatic dependent launch (sm_90 and later; without it, each kernel starts when the
// one before it is complete, and these do nothing)

// Until everything that was launched before this kernel is complete and visible. Before it, a
// kernel that was launched by LaunchDependent may read only what no kernel before it writes, and
// may write nothing. Every thread of such a kernel calls it once.
__device__ __forceinline__ void GridDependencyWait() {
#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  ::cuda_on_cpu::GridWait();
#endif
}

// Lets the next dependent launch start, as soon as every block of this one has called it.
__device__ __forceinline__ void LetDependentsStart() {
#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#else
  ::cuda_on_cpu::GridTrigger();
#endif
}

// Launches `kernel` so that it may start before the launch before it is complete (see
// GridDependencyWait) where `overlap`, else in stream order. More than 48 KiB of shared memory is
// legal.
template <typename... Parameters, typename... Arguments>
void LaunchDependent(bool overlap, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                     size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
#if defined(__CUDACC__)
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  if (shared_bytes > kDefaultSharedBytes) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  // Kernels that want the first-level cache split in different ways never share a multiprocessor.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                       cudaSharedmemCarveoutMaxShared);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, arguments...);  // errors stay for cudaGetLastError
#else
  (void)stream;
  ::cuda_on_cpu::Launch(
      grid, block, shared_bytes, [=] { kernel(arguments...); },
      overlap ? ::cuda_on_cpu::LaunchOrder::kDependent : ::cuda_on_cpu::LaunchOrder::kSerial);
#endif
}

// ------ asynchronous copies to shared memory

// One float; complete after the CopyWait that its group is due at.
__device__ __forceinline__ void CopyAsync4(float* shared_destination, const float* source) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_destination));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(source));
#else
  ::cuda_on_cpu::AsyncCopy(shared_destination, source, 4);
#endif
}

// Sixteen bytes, both ends aligned to sixteen, past the first-level cache; else as CopyAsync4.
__device__ __forceinline__ void CopyAsync16(void* shared_destination, const void* source) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_destination));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source) : "memory");
#else
  ::cuda_on_cpu::AsyncCopy(shared_destination, source, 16);
#endif
}

// Eight bytes, both ends aligned to eight; else as CopyAsync4.
__device__ __forceinline__ void CopyAsync8(void* shared_destination, const void* source) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_destination));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(source) : "memory");
#else
  ::cuda_on_cpu::AsyncCopy(shared_destination, source, 8);
#endif
}

inline constexpr int kCacheLineBytes = 128;

// Begins to bring the line at `source` to the second-level cache.
__device__ __forceinline__ void PrefetchL2(const void* source) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(source));
#else
  (void)*static_cast<const volatile unsigned char*>(source);  // in bounds
#endif
}

__device__ __forceinline__ void CopyCommit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  ::cuda_on_cpu::AsyncCommit();
#endif
}

// Waits until at most kGroups of this thread's newest groups are in flight.
template <int kGroups>
__device__ __forceinline__ void CopyWait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  ::cuda_on_cpu::AsyncWait(kGroups);
#endif
}

// ------ arithmetic

// 2^x. On the device ex2.approx.ftz (relative error 2^-22); the host's exp2f in tests.
__device__ __forceinline__ float Exp2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

inline constexpr float kLog2E = 1.44269504088896340736f;

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + Exp2(-x * kLog2E)); }
__device__ __forceinline__ float Softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

}  // namespace vivarium::kernels::cuda
