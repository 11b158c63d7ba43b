#include <cstring>

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {

// A copy of few rows (one per sequence): never worth a second thread.
void CpuBackend::GatherRows(const GatherRowsParams& params) {
  const auto row_bytes = static_cast<size_t>(params.channels) * sizeof(float);
  for (int64_t i = 0; i < params.num_rows; ++i) {
    std::memcpy(params.out + i * params.channels, params.x + params.row_index[i] * params.channels,
                row_bytes);
  }
}

}  // namespace vivarium::kernels
