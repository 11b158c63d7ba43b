// EmbeddingGather and GatherRows: bound by memory, one block a row.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kGatherThreads = 256;

// Grid (num_tokens), kGatherThreads threads.
template <bool kBF16>
__global__ void EmbeddingGatherKernel(EmbeddingGatherParams params) {
  const int64_t token = blockIdx.x;
  const int64_t row = params.token_ids[token];
  for (int64_t i = threadIdx.x; i < params.d_model; i += kGatherThreads) {
    const int64_t source = row * params.d_model + i;
    params.out[token * params.d_model + i] =
        kBF16 ? BF16BitsToFloat(static_cast<const uint16_t*>(params.table)[source])
              : static_cast<const float*>(params.table)[source];
  }
}

// Grid (num_rows), kGatherThreads threads.
static __global__ void GatherRowsKernel(GatherRowsParams params) {
  const int64_t row = blockIdx.x;
  const int64_t source = params.row_index[row];
  for (int64_t i = threadIdx.x; i < params.channels; i += kGatherThreads) {
    params.out[row * params.channels + i] = params.x[source * params.channels + i];
  }
}

inline void LaunchEmbeddingGather(const EmbeddingGatherParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.num_tokens));
  if (params.table_dtype == DType::kBF16) {
    LAUNCH(EmbeddingGatherKernel<true>, grid, dim3(kGatherThreads), 0, stream, params);
  } else {
    LAUNCH(EmbeddingGatherKernel<false>, grid, dim3(kGatherThreads), 0, stream, params);
  }
}

inline void LaunchGatherRows(const GatherRowsParams& params, cudaStream_t stream) {
  LAUNCH(GatherRowsKernel, dim3(static_cast<unsigned>(params.num_rows)), dim3(kGatherThreads), 0,
         stream, params);
}

}  // namespace vivarium::kernels::cuda
