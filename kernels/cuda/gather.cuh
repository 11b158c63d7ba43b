// EmbeddingGather and GatherRows: bound by memory, one block a row.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.cuh"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kGatherThreads = 256;

struct EmbeddingArguments {
  const void* table;    // packed (linear.cuh), or f32 [vocab][d_model]
  const float* scales;  // [vocab], of int8 rows
  const int32_t* token_ids;
  float* out;
  int64_t d_model;
};

// Grid (num_tokens), kGatherThreads threads.
template <DType kDType>
__global__ void EmbeddingGatherKernel(EmbeddingArguments arguments) {
  const int64_t token = blockIdx.x;
  const int64_t row = arguments.token_ids[token];
  for (int64_t i = threadIdx.x; i < arguments.d_model; i += kGatherThreads) {
    float value;
    if constexpr (kDType == DType::kF32) {
      value = static_cast<const float*>(arguments.table)[row * arguments.d_model + i];
    } else {
      const int64_t index = PackedIndex(row, i, arguments.d_model);
      if constexpr (kDType == DType::kBF16) {
        value = BF16BitsToFloat(static_cast<const uint16_t*>(arguments.table)[index]);
      } else {
        value = WidenInt8(static_cast<const uint8_t*>(arguments.table)[index], 0) *
                arguments.scales[row];
      }
    }
    arguments.out[token * arguments.d_model + i] = value;
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

inline void LaunchEmbeddingGather(const EmbeddingArguments& arguments, DType dtype,
                                  int64_t num_tokens, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(num_tokens));
  const dim3 block(kGatherThreads);
  if (dtype == DType::kF32) {
    LAUNCH(EmbeddingGatherKernel<DType::kF32>, grid, block, 0, stream, arguments);
  } else if (dtype == DType::kBF16) {
    LAUNCH(EmbeddingGatherKernel<DType::kBF16>, grid, block, 0, stream, arguments);
  } else {
    LAUNCH(EmbeddingGatherKernel<DType::kI8>, grid, block, 0, stream, arguments);
  }
}

inline void LaunchGatherRows(const GatherRowsParams& params, cudaStream_t stream) {
  LAUNCH(GatherRowsKernel, dim3(static_cast<unsigned>(params.num_rows)), dim3(kGatherThreads), 0,
         stream, params);
}

}  // namespace vivarium::kernels::cuda
