// The first kernel of a fused decode step: RMSNorm of the residual, in_proj, convolution. Without a
// convolution it is NormLinear.
//
// Every block normalises all rows for itself, into shared memory as bf16, while its first weights
// are on their way; then it streams its row tiles. An x row's output meets the convolution's window
// in the thread that sums it up; a z row's is stored as it is.
#pragma once

#include "kernels/cuda/causal_conv1d.cuh"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/rms_norm.cuh"

namespace vivarium::kernels::cuda {

inline constexpr int kMinDecodeConvWidth = 2;
inline constexpr int kMaxDecodeConvWidth = 4;

struct DecodeInParams {
  const float* residual;  // [num_rows, cols] contiguous
  const float* norm_weight;
  float norm_eps;
  const void* weight;       // packed [rows, cols]: x rows, then z rows
  const float* scales;      // [rows], of int8 weights; null: 1
  const float* bias;        // [rows] or null
  CausalConv1dParams conv;  // its out receives all rows: x rows as convolved, then z rows. channels
                            // 0: no x rows
  uint16_t* x_bf16;         // [num_rows, channels]: x as convolved
  int64_t x_bf16_stride;
  int64_t rows;
  int64_t cols;  // even
  int num_rows;
};

struct alignas(8) FloatPair {
  float low, high;
};

// Row by row, each warp's part of the sum of squares of value(row, c), to warp_sums
// [num_rows][kRmsNormWarps].
template <int kRows, int kAtOnce, typename Value>
__device__ __forceinline__ void StoreNormSumsOf(int num_rows, int64_t channels, const Value& value,
                                                float* warp_sums) {
  static_assert(kDecodeThreads == kRmsNormThreads);
  for (int first = 0; first < num_rows; first += kRows) {
    float sums[kRows];
    NormPartialSums<kRows, kAtOnce>(sums, channels, [&](int row, int64_t c) {
      return first + row < num_rows ? value(first + row, c) : 0.0f;
    });
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (first + row < num_rows && threadIdx.x % kWarpSize == 0) {
        warp_sums[(first + row) * kRmsNormWarps + threadIdx.x / kWarpSize] = sums[row];
      }
    }
  }
}

// Sixteen loads of a thread in flight, or more.
template <typename Value>
__device__ __forceinline__ void StoreNormSums(int num_rows, int64_t channels, const Value& value,
                                              float* warp_sums) {
  if (num_rows == 1) {
    StoreNormSumsOf<1, 16>(num_rows, channels, value, warp_sums);
  } else {
    StoreNormSumsOf<8, 4>(num_rows, channels, value, warp_sums);
  }
}

// value * scale * weight as bf16 pairs; a thread asks for kAtOnce pairs of kRows rows before it
// uses them.
template <int kRows, int kAtOnce>
__device__ __forceinline__ void StageScaledOf(const DecodeInParams& params, const float* scales,
                                              const StagedRows& staged) {
  const int pairs = static_cast<int>(LinearSteps(params.cols)) * kStepPairs;
  const int live_pairs = static_cast<int>(params.cols / 2);
  for (int first = static_cast<int>(threadIdx.x); first < pairs;
       first += kAtOnce * kDecodeThreads) {
    FloatPair weight[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = first + i * kDecodeThreads;
      weight[i] = pair < live_pairs ? reinterpret_cast<const FloatPair*>(params.norm_weight)[pair]
                                    : FloatPair{0.0f, 0.0f};
    }
    for (int first_row = 0; first_row < params.num_rows; first_row += kRows) {
      FloatPair value[kAtOnce][kRows];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int pair = first + i * kDecodeThreads;
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int64_t offset = (first_row + j) * params.cols + 2 * static_cast<int64_t>(pair);
          value[i][j] = pair < live_pairs && first_row + j < params.num_rows
                            ? *reinterpret_cast<const FloatPair*>(params.residual + offset)
                            : FloatPair{0.0f, 0.0f};
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int pair = first + i * kDecodeThreads;
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int row = first_row + j;
          if (pair >= pairs || row >= params.num_rows) continue;
          staged.pairs[row * staged.pitch + pair] =
              PackBF16(value[i][j].low * scales[row] * weight[i].low,
                       value[i][j].high * scales[row] * weight[i].high);
        }
      }
    }
  }
}

// Stages RMSNorm(residual); ends with a barrier.
static __device__ __forceinline__ void StageNormalized(const DecodeInParams& params,
                                                       float* warp_sums, float* scales,
                                                       const StagedRows& staged) {
  StoreNormSums(
      params.num_rows, params.cols,
      [&](int row, int64_t c) { return params.residual[row * params.cols + c]; }, warp_sums);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < params.num_rows) {
    scales[threadIdx.x] =
        NormScale(warp_sums + threadIdx.x * kRmsNormWarps, params.cols, params.norm_eps);
  }
  __syncthreads();
  if (params.num_rows == 1) {
    StageScaledOf<1, 8>(params, scales, staged);
  } else {
    StageScaledOf<8, 2>(params, scales, staged);
  }
  __syncthreads();
}

template <int kTokenTiles>
inline size_t DecodeInShared(int num_rows, int64_t cols) {
  return LargeStream<kTokenTiles, PackedFragment>::kRingBytes +
         2 * kPartialCount<kTokenTiles> * sizeof(MmaC) +
         static_cast<size_t>(num_rows) * StagedPitch(cols) * sizeof(uint32_t) +
         kMaxDecodeRows * (kRmsNormWarps + 1) * sizeof(float);
}

// Any grid of one dimension, kDecodeThreads threads, DecodeInShared bytes.
template <int kTokenTiles, int kWidth, typename Fragment>
__global__ void __launch_bounds__(kDecodeThreads, 2) DecodeInKernel(DecodeInParams params) {
  using Stream = LargeStream<kTokenTiles, Fragment>;
  DYNAMIC_SHARED(unsigned char, shared);
  auto* const partials = reinterpret_cast<MmaC*>(shared + Stream::kRingBytes);
  auto* const warp_sums = reinterpret_cast<float*>(partials + 2 * kPartialCount<kTokenTiles>);
  float* const scales = warp_sums + kMaxDecodeRows * kRmsNormWarps;
  const StagedRows x = {reinterpret_cast<uint32_t*>(scales + kMaxDecodeRows),
                        StagedPitch(params.cols), params.num_rows};

  Stream stream(params.weight, params.rows, params.cols, shared);
  stream.Start();
  // The norm's weights were last used a step ago.
  constexpr int kLineFloats = kCacheLineBytes / sizeof(float);
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * kLineFloats; c < params.cols;
       c += static_cast<int64_t>(kDecodeThreads) * kLineFloats) {
    PrefetchL2(params.norm_weight + c);
  }
  GridDependencyWait();
  // Not before the wait: when the kernels after this one start, all work of before it is complete.
  LetDependentsStart();
  StageNormalized(params, warp_sums, scales, x);

  const int row = static_cast<int>(threadIdx.x) / kRowTile;
  const bool has_segment = row < params.num_rows && params.conv.channels > 0;
  const Segment segment = has_segment ? params.conv.segments[row] : Segment{};
  MmaC* partial = partials;
  for (int tile = static_cast<int>(blockIdx.x); tile < stream.row_tiles(); tile += gridDim.x) {
    const int64_t channel = static_cast<int64_t>(tile) * kRowTile + threadIdx.x % kRowTile;
    const bool live = row < params.num_rows && channel < params.rows;
    const bool is_x = live && channel < params.conv.channels;
    ConvChannel<kWidth> conv;
    if (is_x) conv.Load(params.conv, segment.read_slot, channel);
    const float scale = live && params.scales ? params.scales[channel] : 1.0f;
    const float bias = live && params.bias ? params.bias[channel] : 0.0f;

    MmaC sums[kTokenTiles] = {};
    stream.Multiply(sums, x);
    StorePartial<kTokenTiles>(partial, sums);
    __syncthreads();  // all segments are there; the other buffer is free: all have read it
    if (live) {
      float value =
          SumSegments<kTokenTiles>(partial, static_cast<int>(threadIdx.x) % kRowTile, row);
      if (params.scales) value *= scale;
      if (params.bias) value += bias;
      if (is_x) {
        value = conv.Step(value);
        conv.Store(params.conv, segment.write_slot, channel);
        params.x_bf16[row * params.x_bf16_stride + channel] = FloatToBF16Bits(value);
      }
      params.conv.out[row * params.conv.out_stride + channel] = value;
    }
    partial = partial == partials ? partials + kPartialCount<kTokenTiles> : partials;
  }
}

}  // namespace vivarium::kernels::cuda
