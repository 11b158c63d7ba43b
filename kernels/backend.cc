#include "kernels/backend.h"

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {

std::unique_ptr<Backend> Backend::Create(std::string_view device, const BackendOptions& options,
                                         std::string* error) {
  if (device == "cpu") return CpuBackend::Create(options, error);
  *error = "device \"" + std::string(device) + "\" is not available: this build has \"cpu\"";
  return nullptr;
}

}  // namespace vivarium::kernels
