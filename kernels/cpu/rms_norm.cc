#include <cassert>

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {
namespace {
constexpr int64_t kMinChunkElements = 16 * 1024;  // some microseconds of work
}  // namespace

void CpuBackend::RmsNorm(const RmsNormParams& params) {
  assert(params.x != nullptr || params.residual != nullptr);
  assert(params.channels >= 1 && params.out_stride >= params.channels);
  pool_->ParallelFor(params.num_tokens, kMinChunkElements / params.channels + 1,
                     [&](int64_t begin, int64_t end) { ops_->rms_norm(params, begin, end); });
}

}  // namespace vivarium::kernels
