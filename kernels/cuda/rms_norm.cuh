// RmsNorm (with the residual's addition): one block a token; the mean is summed in an order that
// depends on the number of channels only.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kRmsNormThreads = 256;
inline constexpr int kRmsNormWarps = kRmsNormThreads / kWarpSize;

// Grid (num_tokens), kRmsNormThreads threads, kRmsNormWarps floats of shared memory.
static __global__ void RmsNormKernel(RmsNormParams params) {
  DYNAMIC_SHARED(float, warp_sums);
  const int64_t token = blockIdx.x;
  const float* x = params.x ? params.x + token * params.x_stride : nullptr;
  float* residual = params.residual ? params.residual + token * params.channels : nullptr;
  float* out = params.out + token * params.out_stride;

  float sum = 0.0f;
  for (int64_t c = threadIdx.x; c < params.channels; c += kRmsNormThreads) {
    float value = x ? x[c] : 0.0f;
    if (residual) {
      value = x ? residual[c] + value : residual[c];
      residual[c] = value;
    }
    sum += value * value;
  }
  sum = WarpSum(sum);
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kRmsNormWarps; ++warp) total += warp_sums[warp];
  const float scale = 1.0f / sqrtf(total / static_cast<float>(params.channels) + params.eps);
  // Each thread reads back only what it has written itself.
  for (int64_t c = threadIdx.x; c < params.channels; c += kRmsNormThreads) {
    const float value = residual ? residual[c] : x[c];
    out[c] = value * scale * (params.weight ? params.weight[c] : 1.0f);
  }
}

inline void LaunchRmsNorm(const RmsNormParams& params, cudaStream_t stream) {
  LAUNCH(RmsNormKernel, dim3(static_cast<unsigned>(params.num_tokens)), dim3(kRmsNormThreads),
         kRmsNormWarps * sizeof(float), stream, params);
}

}  // namespace vivarium::kernels::cuda
