// Linear: batch-invariant matrix products. bf16 weights meet activations rounded to bf16 in the
// tensor cores; int8 weights are widened to bf16 (exactly) in registers, and a row's scale
// multiplies its sums at the end; f32 weights are multiplied in f32.
//
// One order, two schedules. K is cut into kLinearSegments runs of 16-wide steps, by K alone; an
// output is the sum, in order, of the segments' sums, each accumulated step by step. For few tokens
// the warps of a block take a segment each, so that many loads of weights are in flight; for many
// tokens a warp takes all segments one after the other. The bits are the same.
//
// Packed weights: [row tile of 16][k step of 16][lane][8]: a lane's MmaA fragment is one load of 16
// bytes, or of 8 in int8, and a warp's load of a step is 512 (256) contiguous bytes. Rows and k are
// padded with zeros. Int8 are held unsigned, plus 128.
#pragma once

#include "kernels/cuda/device.h"

namespace vivarium::kernels::cuda {

inline constexpr int kLinearSegments = 8;
inline constexpr int kLinearThreads = kLinearSegments * kWarpSize;
inline constexpr int kRowTile = 16;      // rows of weights in an mma
inline constexpr int kTokenTile = 8;     // tokens in an mma
inline constexpr int kStep = 16;         // of k in an mma
inline constexpr int kSmallTokens = 32;  // at most that many tokens take the small schedule

struct alignas(16) PackedFragment {
  MmaA a;
};

struct alignas(8) PackedInt8Fragment {
  uint32_t fours[2];
};
inline constexpr int kInt8Offset = 128;

struct LinearArguments {
  const float* x;  // [num_tokens, cols] stride x_stride
  int64_t x_stride;
  const void* weight;  // packed
  const float* bias;   // [rows] or null
  float* out;          // [num_tokens, rows] stride out_stride
  int64_t out_stride;
  int64_t num_tokens;
  int64_t rows;
  int64_t cols;
  const float* scales;  // [rows], of int8 weights; null: 1
};

__host__ __device__ inline int64_t LinearSteps(int64_t cols) { return (cols + kStep - 1) / kStep; }
__host__ __device__ inline int64_t SegmentSteps(int64_t cols) {
  return (LinearSteps(cols) + kLinearSegments - 1) / kLinearSegments;
}

// Of W[row][k], in packed elements.
__host__ __device__ inline int64_t PackedIndex(int64_t row, int64_t k, int64_t cols) {
  const int64_t lane = row % 8 * 4 + k % 8 / 2;
  const int64_t pair = (row % kRowTile >= 8 ? 1 : 0) + (k % kStep >= 8 ? 2 : 0);
  return ((row / kRowTile * LinearSteps(cols) + k / kStep) * kWarpSize + lane) * 8 + pair * 2 +
         k % 2;
}

// Byte `index` of four, as the number it stands for: 2^23 + byte is exact, and so is the
// difference.
__device__ __forceinline__ float WidenInt8(uint32_t four, int index) {
  constexpr uint32_t kTwoTo23 = 0x4b000000u;
  return __uint_as_float(kTwoTo23 | (four >> (8 * index) & 0xffu)) - (8388608.0f + kInt8Offset);
}

__device__ __forceinline__ MmaA WidenFragment(const PackedFragment& fragment) { return fragment.a; }
__device__ __forceinline__ MmaA WidenFragment(const PackedInt8Fragment& fragment) {
  MmaA a;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t four = fragment.fours[pair / 2];
    a.pairs[pair] = PackBF16(WidenInt8(four, pair % 2 * 2), WidenInt8(four, pair % 2 * 2 + 1));
  }
  return a;
}

// The pair x[token][k], x[token][k + 1], zeros outside.
__device__ __forceinline__ uint32_t LoadActivationPair(const LinearArguments& arguments,
                                                       int64_t token, int64_t k) {
  if (token >= arguments.num_tokens) return 0;
  const float* x = arguments.x + token * arguments.x_stride;
  return PackBF16(k < arguments.cols ? x[k] : 0.0f, k + 1 < arguments.cols ? x[k + 1] : 0.0f);
}

__device__ __forceinline__ void StoreLinear(const LinearArguments& arguments, int64_t row,
                                            int64_t token, float value) {
  if (row >= arguments.rows || token >= arguments.num_tokens) return;
  if (arguments.scales) value *= arguments.scales[row];
  arguments.out[token * arguments.out_stride + row] =
      arguments.bias ? value + arguments.bias[row] : value;
}

// Output (row, token) of a row tile, from partial [segment][token tile][lane]: the segments' sums,
// in order.
template <int kTokenTiles>
__device__ __forceinline__ float SumSegments(const MmaC* partial, int row, int token) {
  const int lane = row % 8 * 4 + token % kTokenTile / 2;
  const int i = row / 8 * 2 + token % 2;
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kLinearSegments; ++s) {
    total += partial[(s * kTokenTiles + token / kTokenTile) * kWarpSize + lane].values[i];
  }
  return total;
}

// Grid (row tiles), kLinearThreads threads; shared memory: kLinearSegments * kTokenTiles MmaC a
// lane. num_tokens <= kTokenTiles * kTokenTile.
template <int kTokenTiles, typename Fragment>
__global__ void __launch_bounds__(kLinearThreads) LinearSmallKernel(LinearArguments arguments) {
  DYNAMIC_SHARED(MmaC, partial);  // [segment][token tile][lane]
  const int lane = threadIdx.x % kWarpSize;
  const int segment = threadIdx.x / kWarpSize;
  const int64_t steps = LinearSteps(arguments.cols);
  const int64_t begin = segment * SegmentSteps(arguments.cols);
  const int64_t limit = begin + SegmentSteps(arguments.cols);
  const int64_t end = limit < steps ? limit : steps;
  const auto* fragments =
      static_cast<const Fragment*>(arguments.weight) + blockIdx.x * steps * kWarpSize + lane;

  MmaC sums[kTokenTiles] = {};
#pragma unroll 4
  for (int64_t step = begin; step < end; ++step) {
    const MmaA weight = WidenFragment(fragments[step * kWarpSize]);
    const int64_t k = step * kStep + lane % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      const int64_t token = tile * kTokenTile + lane / 4;
      const MmaB b = {
          {LoadActivationPair(arguments, token, k), LoadActivationPair(arguments, token, k + 8)}};
      MmaBF16(sums[tile], weight, b);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    partial[(segment * kTokenTiles + tile) * kWarpSize + lane] = sums[tile];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRowTile * kTokenTiles * kTokenTile; i += kLinearThreads) {
    const int row = i % kRowTile;
    const int token = i / kRowTile;
    if (token < arguments.num_tokens) {
      StoreLinear(arguments, blockIdx.x * kRowTile + row, token,
                  SumSegments<kTokenTiles>(partial, row, token));
    }
  }
}

inline constexpr int kLargeTokenTiles = 8;
inline constexpr int kLargeTokens = kLargeTokenTiles * kTokenTile;        // of a block
inline constexpr int kLargeRows = kLinearThreads / kWarpSize * kRowTile;  // of a block
inline constexpr int kLargeSteps = 4;                                     // of k staged at once
inline constexpr int kLargePairs = kLargeSteps * kStep / 2;
inline constexpr int kLargePitch = kLargePairs + 4;  // pairs from token to token: no bank conflicts

// Grid (row blocks, token blocks), kLinearThreads threads, kLargeTokens * kLargePitch pairs of
// shared memory.
template <typename Fragment>
__global__ void __launch_bounds__(kLinearThreads) LinearLargeKernel(LinearArguments arguments) {
  DYNAMIC_SHARED(uint32_t, staged);  // [token][k pair]
  const int lane = threadIdx.x % kWarpSize;
  const int64_t row_tiles = (arguments.rows + kRowTile - 1) / kRowTile;
  const int64_t row_tile =
      static_cast<int64_t>(blockIdx.x) * (kLargeRows / kRowTile) + threadIdx.x / kWarpSize;
  const bool live = row_tile < row_tiles;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kLargeTokens;
  const int64_t steps = LinearSteps(arguments.cols);
  const auto* fragments = static_cast<const Fragment*>(arguments.weight) +
                          (live ? row_tile : 0) * steps * kWarpSize + lane;

  MmaC totals[kLargeTokenTiles] = {};
  const int64_t segment_steps = SegmentSteps(arguments.cols);
  for (int64_t begin = 0; begin < steps; begin += segment_steps) {
    const int64_t end = begin + segment_steps < steps ? begin + segment_steps : steps;
    MmaC sums[kLargeTokenTiles] = {};
    for (int64_t step = begin; step < end; step += kLargeSteps) {
      __syncthreads();  // the last stage has been read
      for (int i = threadIdx.x; i < kLargeTokens * kLargePairs; i += kLinearThreads) {
        const int token = i / kLargePairs;
        const int pair = i % kLargePairs;
        staged[token * kLargePitch + pair] =
            LoadActivationPair(arguments, first_token + token, step * kStep + pair * 2);
      }
      __syncthreads();  // this stage is there
      for (int s = 0; s < kLargeSteps && step + s < end; ++s) {
        const MmaA weight = WidenFragment(fragments[(step + s) * kWarpSize]);
#pragma unroll
        for (int tile = 0; tile < kLargeTokenTiles; ++tile) {
          const uint32_t* pairs =
              staged + (tile * kTokenTile + lane / 4) * kLargePitch + s * (kStep / 2) + lane % 4;
          MmaBF16(sums[tile], weight, MmaB{{pairs[0], pairs[4]}});
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kLargeTokenTiles; ++tile) {
      for (int i = 0; i < 4; ++i) totals[tile].values[i] += sums[tile].values[i];
    }
  }
  if (!live) return;
#pragma unroll
  for (int tile = 0; tile < kLargeTokenTiles; ++tile) {
    for (int i = 0; i < 4; ++i) {
      StoreLinear(arguments, row_tile * kRowTile + lane / 4 + (i >= 2 ? 8 : 0),
                  first_token + tile * kTokenTile + lane % 4 * 2 + i % 2, totals[tile].values[i]);
    }
  }
}

// f32 weights [rows][cols]: a warp an output, lanes over k in strides. Grid (rows, num_tokens), one
// warp.
static __global__ void LinearF32Kernel(LinearArguments arguments) {
  const int64_t row = blockIdx.x;
  const int64_t token = blockIdx.y;
  const float* weight = static_cast<const float*>(arguments.weight) + row * arguments.cols;
  const float* x = arguments.x + token * arguments.x_stride;
  float sum = 0.0f;
  for (int64_t k = threadIdx.x; k < arguments.cols; k += kWarpSize) {
    sum = fmaf(weight[k], x[k], sum);
  }
  sum = WarpSum(sum);
  if (threadIdx.x == 0) StoreLinear(arguments, row, token, sum);
}

template <int kTokenTiles, typename Fragment>
void LaunchLinearSmall(const LinearArguments& arguments, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((arguments.rows + kRowTile - 1) / kRowTile));
  LAUNCH((LinearSmallKernel<kTokenTiles, Fragment>), grid, dim3(kLinearThreads),
         kLinearSegments * kTokenTiles * kWarpSize * sizeof(MmaC), stream, arguments);
}

// Fragment: PackedFragment or PackedInt8Fragment.
template <typename Fragment>
void LaunchLinear(const LinearArguments& arguments, cudaStream_t stream) {
  if (arguments.num_tokens <= kTokenTile) return LaunchLinearSmall<1, Fragment>(arguments, stream);
  if (arguments.num_tokens <= 2 * kTokenTile) {
    return LaunchLinearSmall<2, Fragment>(arguments, stream);
  }
  if (arguments.num_tokens <= kSmallTokens)
    return LaunchLinearSmall<4, Fragment>(arguments, stream);
  const dim3 grid(static_cast<unsigned>((arguments.rows + kLargeRows - 1) / kLargeRows),
                  static_cast<unsigned>((arguments.num_tokens + kLargeTokens - 1) / kLargeTokens));
  LAUNCH(LinearLargeKernel<Fragment>, grid, dim3(kLinearThreads),
         kLargeTokens * kLargePitch * sizeof(uint32_t), stream, arguments);
}

inline void LaunchLinearF32(const LinearArguments& arguments, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(arguments.rows),
                  static_cast<unsigned>(arguments.num_tokens));
  LAUNCH(LinearF32Kernel, grid, dim3(kWarpSize), 0, stream, arguments);
}

}  // namespace vivarium::kernels::cuda
