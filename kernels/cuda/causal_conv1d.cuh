// CausalConv1d: a thread a channel, its window in registers, tokens in order: prefill, chunked
// prefill and decode are one kernel.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/segment.cuh"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kConvThreads = 128;

// One channel's filter and its last kWidth inputs, oldest first; the newest is filled in by Step.
template <int kWidth>
struct ConvChannel {
  float weight[kWidth];
  float window[kWidth];
  float bias;

  __device__ __forceinline__ void Load(const CausalConv1dParams& params, int32_t read_slot,
                                       int64_t channel) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) weight[j] = params.weight[j * params.channels + channel];
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      window[j] =
          read_slot < 0
              ? 0.0f
              : params.states[read_slot * params.slot_stride + (j - 1) * params.channels + channel];
    }
    bias = params.bias ? params.bias[channel] : 0.0f;
  }

  // The output for the next input.
  __device__ __forceinline__ float Step(float x) {
#pragma unroll
    for (int j = 0; j + 1 < kWidth; ++j) window[j] = window[j + 1];
    window[kWidth - 1] = x;
    float sum = bias;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum = fmaf(weight[j], window[j], sum);
    return Silu(sum);
  }

  __device__ __forceinline__ void Store(const CausalConv1dParams& params, int32_t write_slot,
                                        int64_t channel) const {
    if (write_slot < 0) return;
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      params.states[write_slot * params.slot_stride + (j - 1) * params.channels + channel] =
          window[j];
    }
  }
};

// Grid (ceil(channels / kConvThreads), num_segments), kConvThreads threads.
template <int kWidth>
__global__ void CausalConv1dKernel(CausalConv1dParams params) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x;
  if (channel >= params.channels) return;
  const int head = static_cast<int>(blockIdx.y);
  if (IsContinued(params, head)) return;
  ConvChannel<kWidth> conv;
  conv.Load(params, params.segments[head].read_slot, channel);
  ChainWalk walk(params, head);
  do {
    for (int64_t t = walk.begin; t < walk.end; ++t) {
      params.out[t * params.out_stride + channel] =
          conv.Step(params.x[t * params.x_stride + channel]);
    }
    conv.Store(params, walk.write_slot, channel);
  } while (walk.Next(params));
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
