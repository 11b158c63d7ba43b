// CausalConv1d: a thread a channel, its window in registers, tokens in order: prefill, chunked
// prefill and decode are one kernel.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kConvThreads = 128;

// Grid (ceil(channels / kConvThreads), num_segments), kConvThreads threads.
template <int kWidth>
__global__ void CausalConv1dKernel(CausalConv1dParams params) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x;
  if (channel >= params.channels) return;
  const Segment segment = params.segments[blockIdx.y];
  float weight[kWidth];
  float
      window[kWidth];  // the last kWidth inputs, oldest first; the newest is filled in by the loop
#pragma unroll
  for (int j = 0; j < kWidth; ++j) weight[j] = params.weight[j * params.channels + channel];
#pragma unroll
  for (int j = 1; j < kWidth; ++j) {
    window[j] = segment.read_slot < 0 ? 0.0f
                                      : params.states[segment.read_slot * params.slot_stride +
                                                      (j - 1) * params.channels + channel];
  }
  const float bias = params.bias ? params.bias[channel] : 0.0f;
  for (int64_t t = segment.token_begin; t < segment.token_begin + segment.num_tokens; ++t) {
#pragma unroll
    for (int j = 0; j + 1 < kWidth; ++j) window[j] = window[j + 1];
    window[kWidth - 1] = params.x[t * params.x_stride + channel];
    float sum = bias;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum = fmaf(weight[j], window[j], sum);
    params.out[t * params.out_stride + channel] = Silu(sum);
  }
  if (segment.write_slot < 0) return;
#pragma unroll
  for (int j = 1; j < kWidth; ++j) {
    params.states[segment.write_slot * params.slot_stride + (j - 1) * params.channels + channel] =
        window[j];
  }
}

template <int kWidth = 1>
void LaunchCausalConv1d(const CausalConv1dParams& params, cudaStream_t stream) {
  if (params.width != kWidth) {
    if constexpr (kWidth < kMaxConvWidth) LaunchCausalConv1d<kWidth + 1>(params, stream);
    return;
  }
  const dim3 grid(static_cast<unsigned>((params.channels + kConvThreads - 1) / kConvThreads),
                  static_cast<unsigned>(params.num_segments));
  LAUNCH(CausalConv1dKernel<kWidth>, grid, dim3(kConvThreads), 0, stream, params);
}

}  // namespace vivarium::kernels::cuda
