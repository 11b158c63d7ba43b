// CUDA kernels on the CPU: the subset of CUDA that kernels/cuda uses, as host C++, so that kernel
// logic is tested, under ASan and UBSan too, on machines without a GPU. kernels/cuda/device.h
// includes this header where the compiler is not nvcc.
//
// One fiber per CUDA thread, one block after the other, on the calling OS thread. A fiber runs
// until it meets a collective (block barrier, warp collective), where it waits for the others. What
// this makes visible:
//   - a missing barrier: threads run in a random order, new for each block, and dynamic shared
//     memory starts as NaN bytes (static __shared__ does not exist here: kernels use
//     DYNAMIC_SHARED);
//   - a missing wait for an asynchronous copy, or a buffer filled too early: a copy is done at once
//     or at the wait, at random;
//   - a missing wait between streams: what is put into a stream of copies is done at random, at
//   once
//     or when an event after it, or the stream, is waited for;
//   - a missing wait for the kernel before: a dependent launch (programmatic dependent launch) is
//     put off until the device is waited for, and when the kernel before it lets it go, one of its
//     blocks, taken at random, runs as far as its GridWait, whatever has not been written yet;
//   - a divergent barrier or warp collective: reported by LastError, and the launch ends;
//   - an access out of bounds: device memory is plain heap memory, ASan sees it.
// What it can't show: races that a barrier-free order happens to hide, bank conflicts, register
// spills, occupancy, the hardware's rounding of approximate functions.
//
// Thread-safety: launches from different OS threads are independent of each other.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names.
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
// NOLINTEND(bugprone-reserved-identifier)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_on_cpu {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreadsPerBlock = 1024;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block on sm_90

// A deliberate fault in the launches of this OS thread, to prove that tests notice it.
struct Fault {
  enum class Kind {
    kNone,
    kSkipBarrier,
    kSkipAsyncWait,
    kSkipGridWait,
    kDropLastBlock,
    kFailLaunch,  // the device fails, for good
    kLoseAdd,     // atomic additions of `line` come to nothing
  };
  Kind kind = Kind::kNone;
  int index = 0;    // which barrier or wait, counted per thread of a block
  int launch = -1;  // which launch since InjectFault; -1 = every one
  int line = 0;     // of the source: all barriers of it, whatever the index
};
void InjectFault(const Fault& fault);
// For whole programs: where this is in the environment, the device fails in the launch of that
// number, counted from 0 on each OS thread.
inline constexpr char kFailLaunchVariable[] = "CUDA_ON_CPU_FAIL_LAUNCH";

// Faults of all OS threads' streams: waits for events that are not done.
enum class StreamFault { kNone, kSkipStreamWait, kSkipEventSynchronize };
void InjectStreamFault(StreamFault fault);

// What went wrong in a launch of this OS thread since the last call, "" = nothing. Clears it.
std::string LastError();

// Collectives that the first thread of a launch's last block has met.
struct LaunchCounts {
  int barriers = 0;
  int async_waits = 0;
  int grid_waits = 0;
};
LaunchCounts LastLaunchCounts();
// Of all launches since the last call.
std::vector<LaunchCounts> TakeLaunchCounts();

// kDependent: may start when the launch before it lets it go (GridTrigger), else after it.
enum class LaunchOrder { kSerial, kDependent };
void Launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> thread_body,
            LaunchOrder order = LaunchOrder::kSerial);
// Completes everything that was launched.
void Flush();
// Calls `call` when everything that was launched before is complete.
void WhenComplete(std::function<void()> call);
// Until RecordInto(nullptr), launches and what RunOrRecord gets are appended instead of run.
void RecordInto(std::vector<std::function<void()>>* recording);
void RunOrRecord(std::function<void()> call);
std::string PeekError();  // LastError without clearing it
bool IsCapturing();       // between cudaStreamBeginCapture and EndCapture

// Of the running CUDA thread.
dim3 ThreadIndex();
dim3 BlockIndex();
dim3 BlockDimension();
dim3 GridDimension();
unsigned char* SharedMemory();

// Where in the source a collective is: all threads that meet in one must have the same.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site&) const = default;
};

void BlockBarrier(Site site);
void WarpBarrier(Site site);
// Every thread of the warp gives `value` (at most 8 bytes) and gets that of `source_lane`.
uint64_t WarpExchange(uint64_t value, int source_lane, Site site);
// Every thread of the warp gives `num_bytes` at `mine`; `all` receives those of lanes 0 .. 31.
void WarpGather(const void* mine, size_t num_bytes, void* all, Site site);
// Copies `copy_bytes` bytes, at some time before the AsyncWait that its group is due at returns.
void AsyncCopy(void* shared_destination, const void* source, int copy_bytes);
void AsyncCommit();
void AsyncWait(int max_groups_in_flight);
bool LosesAdd(int line);  // Fault::kLoseAdd
// griddepcontrol.wait and .launch_dependents.
void GridWait();
void GridTrigger();

template <typename T>
T WarpShuffle(T value, int source_lane, Site site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = WarpExchange(bits, source_lane, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

int LaneIndex();

}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::ThreadIndex())
#define blockIdx (::cuda_on_cpu::BlockIndex())
#define blockDim (::cuda_on_cpu::BlockDimension())
#define gridDim (::cuda_on_cpu::GridDimension())

#define CUDA_ON_CPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// NOLINTBEGIN(bugprone-reserved-identifier)
inline void __syncthreads(CUDA_ON_CPU_SITE) { ::cuda_on_cpu::BlockBarrier({file, line}); }
inline void __syncwarp(unsigned = ~0u, CUDA_ON_CPU_SITE) {
  ::cuda_on_cpu::WarpBarrier({file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask, CUDA_ON_CPU_SITE) {
  return ::cuda_on_cpu::WarpShuffle(value, ::cuda_on_cpu::LaneIndex() ^ lane_mask, {file, line});
}
template <typename T>
T __shfl_sync(unsigned, T value, int source_lane, CUDA_ON_CPU_SITE) {
  return ::cuda_on_cpu::WarpShuffle(value, source_lane, {file, line});
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
// NOLINTEND(bugprone-reserved-identifier)

// Threads are fibers of one OS thread: nothing comes between.
inline unsigned atomicAdd(unsigned* address, unsigned value, int line = __builtin_LINE()) {
  const unsigned before = *address;
  if (!::cuda_on_cpu::LosesAdd(line)) *address += value;
  return before;
}

// ---- The runtime API: one device, whose memory is the heap. An OS thread's first stream is the
// one of its launches, of whoever's calls name it: every call is complete at its return, but
// dependent launches. Its further streams are for copies and events.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
struct CudaGraphOnCpu {
  std::vector<std::function<void()>> calls;
};
struct CudaStreamOnCpu;
struct CudaEventOnCpu;
using cudaStream_t = CudaStreamOnCpu*;
using cudaEvent_t = CudaEventOnCpu*;
using cudaGraph_t = CudaGraphOnCpu*;
using cudaGraphExec_t = CudaGraphOnCpu*;

cudaError_t cudaMalloc(void** pointer, size_t bytes);  // filled with NaN bytes
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMallocHost(void** pointer, size_t bytes);
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* pointer, int byte, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);  // an error during a capture
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);  // of 80 GiB, half is free
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int ordinal);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int ordinal);
// The error of the launches since the last call.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventBlockingSync = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
