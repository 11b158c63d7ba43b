// x_proj, and out_proj with the residual's addition, of a fused decode step.
#pragma once

#include "kernels/cuda/decode_stream.cuh"

namespace vivarium::kernels::cuda {

struct DecodeProjectParams {
  const uint16_t* x;  // bf16 [num_rows, cols] stride x_stride, a multiple of 8
  int64_t x_stride;
  const void* weight;   // packed [rows, cols]
  const float* scales;  // [rows], of int8 weights; null: 1
  const float* bias;    // [rows] or null
  float* out;           // [num_rows, rows] stride out_stride
  int64_t out_stride;
  bool accumulates;  // out += instead of out =
  int64_t rows;
  int64_t cols;
  int num_rows;
};

template <int kTokenTiles>
inline size_t DecodeProjectShared(int num_rows, int64_t cols) {
  return LargeStream<kTokenTiles, PackedFragment>::kRingBytes +
         2 * kPartialCount<kTokenTiles> * sizeof(MmaC) +
         static_cast<size_t>(num_rows) * StagedPitch(cols) * sizeof(uint32_t);
}

// Any grid of one dimension, kDecodeThreads threads, DecodeProjectShared bytes. A warp begins when
// its own segment of the activations is there.
template <int kTokenTiles, typename Fragment>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    DecodeProjectKernel(DecodeProjectParams params) {
  using Stream = LargeStream<kTokenTiles, Fragment>;
  DYNAMIC_SHARED(unsigned char, shared);
  auto* const partials = reinterpret_cast<MmaC*>(shared + Stream::kRingBytes);
  const StagedRows x = {reinterpret_cast<uint32_t*>(partials + 2 * kPartialCount<kTokenTiles>),
                        StagedPitch(params.cols), params.num_rows};

  LetDependentsStart();
  Stream stream(params.weight, params.rows, params.cols, shared);
  stream.Start();
  GridDependencyWait();
  StageSegment(params.x, params.x_stride, params.cols, stream.begin(), stream.end(), x);

  const int row = static_cast<int>(threadIdx.x) / kRowTile;
  MmaC* partial = partials;
  for (int tile = static_cast<int>(blockIdx.x); tile < stream.row_tiles(); tile += gridDim.x) {
    const int64_t channel = static_cast<int64_t>(tile) * kRowTile + threadIdx.x % kRowTile;
    const bool live = row < params.num_rows && channel < params.rows;
    float* const out = params.out + row * params.out_stride + channel;
    const float before = live && params.accumulates ? *out : 0.0f;
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
      *out = params.accumulates ? before + value : value;
    }
    partial = partial == partials ? partials + kPartialCount<kTokenTiles> : partials;
  }
}

}  // namespace vivarium::kernels::cuda
