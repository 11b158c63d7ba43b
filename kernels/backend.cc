#include "kernels/backend.h"

#include <charconv>
#include <cstdlib>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"

namespace vivarium::kernels {

std::unique_ptr<Backend> Backend::Create(std::string_view device, const BackendOptions& options,
                                         std::string* error) {
  if (device == "cpu") return CpuBackend::Create(options, error);
  constexpr std::string_view kCuda = "cuda";
  if (device == kCuda) return cuda::CreateCudaBackend(0, options, error);
  if (device.substr(0, kCuda.size()) == kCuda && device.size() > kCuda.size() + 1 &&
      device[kCuda.size()] == ':') {
    const std::string_view number = device.substr(kCuda.size() + 1);
    int ordinal = 0;
    const auto [end, code] = std::from_chars(number.data(), number.data() + number.size(), ordinal);
    if (code == std::errc() && end == number.data() + number.size()) {
      return cuda::CreateCudaBackend(ordinal, options, error);
    }
  }
  *error = "device \"" + std::string(device) + "\" is unknown: expected \"cpu\" or \"cuda:N\"";
  return nullptr;
}

void* Backend::AllocateHost(size_t bytes) {
  constexpr size_t kAlignment = 64;
  return std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
}

void Backend::FreeHost(void* host_ptr) { std::free(host_ptr); }

}  // namespace vivarium::kernels
