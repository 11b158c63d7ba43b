#include <cassert>

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {
namespace {
constexpr int64_t kMinChunkElements = 32 * 1024;  // some microseconds of copying
}  // namespace

void CpuBackend::EmbeddingGather(const EmbeddingGatherParams& params) {
  assert(params.table_dtype == DType::kF32 || params.table_dtype == DType::kBF16);
  for (int64_t t = 0; t < params.num_tokens; ++t) {
    assert(params.token_ids[t] >= 0 && params.token_ids[t] < params.vocab_size);
  }
  pool_->ParallelFor(
      params.num_tokens, kMinChunkElements / params.d_model + 1,
      [&](int64_t begin, int64_t end) { ops_->embedding_gather(params, begin, end); });
}

}  // namespace vivarium::kernels
