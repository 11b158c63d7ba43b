// RmsNorm (with the residual's addition): one block a token; the mean is summed in an order that
// depends on the number of channels only.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kRmsNormThreads = 256;
inline constexpr int kRmsNormWarps = kRmsNormThreads / kWarpSize;

// Per row of kRows, this warp's part of the sum of squares of value(row, c), c < channels, for
// NormScale: the block's threads take c in strides, then the warp's lanes are summed. A thread asks
// for kAtOnce values of a row before it uses them; the order does not depend on it.
template <int kRows, int kAtOnce, typename Value>
__device__ __forceinline__ void NormPartialSums(float (&sums)[kRows], int64_t channels,
                                                const Value& value) {
#pragma unroll
  for (int row = 0; row < kRows; ++row) sums[row] = 0.0f;
  for (int64_t first = threadIdx.x; first < channels; first += kAtOnce * kRmsNormThreads) {
    float v[kAtOnce][kRows];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t c = first + i * kRmsNormThreads;
#pragma unroll
      for (int row = 0; row < kRows; ++row) v[i][row] = c < channels ? value(row, c) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) sums[row] += v[i][row] * v[i][row];
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) sums[row] = WarpSum(sums[row]);
}

// 1 / rms from the partial sums of the block's kRmsNormWarps warps.
__device__ __forceinline__ float NormScale(const float* warp_sums, int64_t channels, float eps) {
  float total = 0.0f;
  for (int warp = 0; warp < kRmsNormWarps; ++warp) total += warp_sums[warp];
  return 1.0f / sqrtf(total / static_cast<float>(channels) + eps);
}

// Grid (num_tokens), kRmsNormThreads threads, kRmsNormWarps floats of shared memory.
static __global__ void RmsNormKernel(RmsNormParams params) {
  DYNAMIC_SHARED(float, warp_sums);
  const int64_t token = blockIdx.x;
  const float* x = params.x ? params.x + token * params.x_stride : nullptr;
  float* residual = params.residual ? params.residual + token * params.channels : nullptr;
  float* out = params.out + token * params.out_stride;

  float sum[1];
  NormPartialSums<1, 4>(sum, params.channels, [&](int, int64_t c) {
    float value = x ? x[c] : 0.0f;
    if (residual) {
      value = x ? residual[c] + value : residual[c];
      residual[c] = value;
    }
    return value;
  });
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = sum[0];
  __syncthreads();
  const float scale = NormScale(warp_sums, params.channels, params.eps);
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
