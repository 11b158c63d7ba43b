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
template <int kRows, int kUnroll, typename Value>
__device__ __forceinline__ void StoreNormSumsOf(int num_rows, int64_t channels, const Value& value,
                                                float* warp_sums) {
  static_assert(kDecodeThreads == kRmsNormThreads);
  for (int first = 0; first < num_rows; first += kRows) {
    float sums[kRows];
    NormPartialSums<kRows, kUnroll>(sums, channels, [&](int row, int64_t c) {
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

// At least sixteen loads of a thread in flight.
template <typename Value>
__device__ __forceinline__ void StoreNormSums(int num_rows, int64_t channels, const Value& value,
                                              float* warp_sums) {
  if (num_rows == 1) {
    StoreNormSumsOf<1, 16>(num_rows, channels, value, warp_sums);
  } else {
    StoreNormSumsOf<8, 2>(num_rows, channels, value, warp_sums);
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
  const int pairs = static_cast<int>(LinearSteps(params.cols)) * kStepPairs;
  for (int pair = static_cast<int>(threadIdx.x); pair < pairs; pair += kDecodeThreads) {
    const int64_t k = 2 * static_cast<int64_t>(pair);
    const bool live = k < params.cols;
    const FloatPair weight =
        live ? *reinterpret_cast<const FloatPair*>(params.norm_weight + k) : FloatPair{0.0f, 0.0f};
#pragma unroll 8
    for (int row = 0; row < params.num_rows; ++row) {
      uint32_t packed = 0;
      if (live) {
        const auto value =
            *reinterpret_cast<const FloatPair*>(params.residual + row * params.cols + k);
        packed =
            PackBF16(value.low * scales[row] * weight.low, value.high * scales[row] * weight.high);
      }
      staged.pairs[row * staged.pitch + pair] = packed;
    }
  }
  __syncthreads();
}

template <int kTokenTiles>
__host__ __device__ inline size_t DecodeInShared(int num_rows, int64_t cols) {
  return LargeStream<kTokenTiles>::kRingBytes + 2 * kPartialCount<kTokenTiles> * sizeof(MmaC) +
         static_cast<size_t>(num_rows) * StagedPitch(cols) * sizeof(uint32_t) +
         kMaxDecodeRows * (kRmsNormWarps + 1) * sizeof(float);
}

// Any grid of one dimension, kDecodeThreads threads, DecodeInShared bytes.
template <int kTokenTiles, int kWidth>
__global__ void __launch_bounds__(kDecodeThreads, 2) DecodeInKernel(DecodeInParams params) {
  using Stream = LargeStream<kTokenTiles>;
  DYNAMIC_SHARED(unsigned char, shared);
  auto* const partials = reinterpret_cast<MmaC*>(shared + Stream::kRingBytes);
  auto* const warp_sums = reinterpret_cast<float*>(partials + 2 * kPartialCount<kTokenTiles>);
  float* const scales = warp_sums + kMaxDecodeRows * kRmsNormWarps;
  const StagedRows x = {reinterpret_cast<uint32_t*>(scales + kMaxDecodeRows),
                        StagedPitch(params.cols), params.num_rows};

  Stream stream(params.weight, params.rows, params.cols, shared);
  stream.Start();
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
    const float bias = live && params.bias ? params.bias[channel] : 0.0f;

    MmaC sums[kTokenTiles] = {};
    stream.Multiply(sums, x);
    StorePartial<kTokenTiles>(partial, sums);
    __syncthreads();  // all segments are there; the other buffer is free: all have read it
    if (live) {
      float value =
          SumSegments<kTokenTiles>(partial, static_cast<int>(threadIdx.x) % kRowTile, row);
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
