#include "kernels/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>

#include "kernels/cpu/isa_choice.h"

namespace vivarium::kernels {
namespace {

// Counts changes of the arithmetic of any op on any path: states say which one made them.
constexpr int kKernelVersion = 1;
constexpr size_t kCacheLineBytes = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;

}  // namespace

void* AllocateAligned(size_t bytes) {
  const size_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : kCacheLineBytes;
  if (bytes > std::numeric_limits<size_t>::max() - alignment) return nullptr;
  const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void* const ptr = std::aligned_alloc(alignment, rounded);
  if (ptr != nullptr && alignment == kHugePageBytes) {
    // Weights are read once per token: without huge pages, the walk of page tables shows. Advice
    // that the system may ignore.
    (void)madvise(ptr, rounded, MADV_HUGEPAGE);
  }
  return ptr;
}

std::unique_ptr<Backend> CpuBackend::Create(const BackendOptions& options, std::string* error) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    *error = "number of CPU threads is " + std::to_string(options.num_threads) +
             ": expected 0 (one per core) to " + std::to_string(kMaxThreads);
    return nullptr;
  }
  const OpTable* ops = ChooseIsa(options.isa, error);
  if (ops == nullptr) return nullptr;
  int num_threads = options.num_threads;
  if (num_threads == 0) {
    num_threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  }
  std::unique_ptr<ThreadPool> pool = ThreadPool::Create(num_threads, error);
  if (pool == nullptr) return nullptr;
  return std::unique_ptr<Backend>(new CpuBackend(ops, std::move(pool)));
}

std::string CpuBackend::numerics_name() const {
  return "cpu-" + std::string(ops_->isa) + "-v" + std::to_string(kKernelVersion);
}

void* CpuBackend::Allocate(size_t bytes) {
  void* const ptr = AllocateAligned(bytes);
  if (ptr != nullptr) std::memset(ptr, 0, bytes);
  return ptr;
}

void CpuBackend::Free(void* device_ptr) { std::free(device_ptr); }

void CpuBackend::CopyToDevice(void* device_dst, const void* host_src, size_t bytes) {
  if (bytes != 0) std::memcpy(device_dst, host_src, bytes);
}

void CpuBackend::CopyToHost(void* host_dst, const void* device_src, size_t bytes) {
  if (bytes != 0) std::memcpy(host_dst, device_src, bytes);
}

void CpuBackend::CopyOnDevice(void* device_dst, const void* device_src, size_t bytes) {
  if (bytes != 0) std::memmove(device_dst, device_src, bytes);
}

void CpuBackend::Zero(void* device_ptr, size_t bytes) {
  if (bytes != 0) std::memset(device_ptr, 0, bytes);
}

}  // namespace vivarium::kernels
