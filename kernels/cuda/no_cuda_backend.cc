// CreateCudaBackend of a build without nvcc.
#include "kernels/cuda/cuda_backend.h"

namespace vivarium::kernels::cuda {

std::unique_ptr<Backend> CreateCudaBackend(int ordinal, const BackendOptions&, std::string* error) {
  *error = "device cuda:" + std::to_string(ordinal) +
           ": this program was built without CUDA; expected \"cpu\"";
  return nullptr;
}

}  // namespace vivarium::kernels::cuda
