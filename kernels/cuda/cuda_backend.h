// The CUDA backend's door: no CUDA in this header.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"

namespace vivarium::kernels::cuda {

// The backend on device `ordinal`. Null, with a sentence in *error, when there is no such device,
// no driver, or this build is without CUDA.
std::unique_ptr<Backend> CreateCudaBackend(int ordinal, const BackendOptions& options,
                                           std::string* error);

}  // namespace vivarium::kernels::cuda
