// The state's step of a fused decode step: Falcon-Mamba's norms, dt_proj, softplus, scan, gate.
//
// A block has a tile of sixteen channels, of dt_proj's rows and of the state alike. The states of
// all rows go to registers before the wait: no kernel of this step writes them.
#pragma once

#include "kernels/cuda/decode_in.cuh"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/selective_scan.cuh"

namespace vivarium::kernels::cuda {

inline constexpr int kMaxDecodeStates = 8;  // of a lane
static_assert(kRowTile == kChannelTile);

struct DecodeStepParams {
  const float* projected;  // [num_rows, dt_rank + 2 * d_state] stride projected_stride: r, B, C
  int64_t projected_stride;
  bool has_norms;  // weightless RMSNorm of each of r, B, C
  float norm_eps;
  const void* dt_weight;  // packed [channels, dt_rank]
  int64_t dt_rank;
  SelectiveScanParams scan;  // x, z, a, dt_bias, d_skip, states, segments
  uint16_t* y;               // bf16 [num_rows, channels] stride y_stride
  int64_t y_stride;
  int num_rows;
};

using StepStream = WeightStream<PackedFragment, 2, 2>;
inline constexpr int kStepTokenTiles = 2;
inline constexpr int kStepParts = 3;  // r, B, C
// Two warps have a row's tile of channels; a warp meets every fourth row.
inline constexpr int kStepRows = kDecodeWarps * kScanWarpChannels / kChannelTile;  // at once
inline constexpr int kStepRounds = kMaxDecodeRows / kStepRows;

inline size_t DecodeStepShared(int num_rows, int64_t dt_rank, int32_t d_state) {
  return StepStream::kRingBytes + kPartialCount<kStepTokenTiles> * sizeof(MmaC) +
         static_cast<size_t>(num_rows) * StagedPitch(dt_rank) * sizeof(uint32_t) +
         sizeof(float) * (kStepParts * kMaxDecodeRows * (kRmsNormWarps + 1) +
                          kMaxDecodeRows * kChannelTile + size_t{2} * num_rows * d_state);
}

// scales [kStepParts][kMaxDecodeRows] of r, B and C; ends with a barrier.
static __device__ __forceinline__ void FindScales(const DecodeStepParams& params, float* warp_sums,
                                                  float* scales) {
  const int d_state = params.scan.d_state;
  for (int part = 0; params.has_norms && part < kStepParts; ++part) {
    const int64_t begin = part == 0 ? 0 : params.dt_rank + (part - 1) * d_state;
    StoreNormSumsOf<4, 1>(
        params.num_rows, part == 0 ? params.dt_rank : d_state,
        [&](int row, int64_t c) {
          return params.projected[row * params.projected_stride + begin + c];
        },
        warp_sums + part * kMaxDecodeRows * kRmsNormWarps);
  }
  if (params.has_norms) __syncthreads();
  if (threadIdx.x < kStepParts * kMaxDecodeRows) {
    const int part = static_cast<int>(threadIdx.x) / kMaxDecodeRows;
    const int row = static_cast<int>(threadIdx.x) % kMaxDecodeRows;
    scales[threadIdx.x] = params.has_norms && row < params.num_rows
                              ? NormScale(warp_sums + threadIdx.x * kRmsNormWarps,
                                          part == 0 ? params.dt_rank : d_state, params.norm_eps)
                              : 1.0f;
  }
  __syncthreads();
}

// r to `r` as bf16, B and C to `bc` [num_rows][2 * d_state]; ends with a barrier.
static __device__ __forceinline__ void StageProjected(const DecodeStepParams& params,
                                                      const float* scales, const StagedRows& r,
                                                      float* bc) {
  const int pairs = static_cast<int>(LinearSteps(params.dt_rank)) * kStepPairs;
  const int d_state = params.scan.d_state;
  for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < params.num_rows;
       row += kDecodeWarps) {
    const float* projected = params.projected + row * params.projected_stride;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    for (int pair = lane; pair < pairs; pair += kWarpSize) {
      const int64_t k = 2 * static_cast<int64_t>(pair);
      const float low = k < params.dt_rank ? projected[k] * scales[row] : 0.0f;
      const float high = k + 1 < params.dt_rank ? projected[k + 1] * scales[row] : 0.0f;
      r.pairs[row * r.pitch + pair] = PackBF16(low, high);
    }
    for (int i = lane; i < 2 * d_state; i += kWarpSize) {
      const int part = i < d_state ? 1 : 2;
      bc[row * 2 * d_state + i] =
          projected[params.dt_rank + i] * scales[part * kMaxDecodeRows + row];
    }
  }
  __syncthreads();
}

// Grid (channel tiles), kDecodeThreads threads, DecodeStepShared bytes. kStates: as for
// SelectiveScanKernel, whose bits these are.
template <int kStates, typename State>
__global__ void __launch_bounds__(kDecodeThreads, kStates <= 4 ? 3 : 2)
    DecodeStepKernel(DecodeStepParams params) {
  DYNAMIC_SHARED(unsigned char, shared);
  auto* const partial = reinterpret_cast<MmaC*>(shared + StepStream::kRingBytes);
  auto* const warp_sums = reinterpret_cast<float*>(partial + kPartialCount<kStepTokenTiles>);
  float* const scales = warp_sums + kStepParts * kMaxDecodeRows * kRmsNormWarps;
  float* const dt = scales + kStepParts * kMaxDecodeRows;  // [row][channel of the tile]
  const StagedRows r = {reinterpret_cast<uint32_t*>(dt + kMaxDecodeRows * kChannelTile),
                        StagedPitch(params.dt_rank), params.num_rows};
  auto* const bc = reinterpret_cast<float*>(r.pairs + params.num_rows * r.pitch);

  LetDependentsStart();
  StepStream stream(params.dt_weight, params.scan.channels, params.dt_rank, shared);
  stream.Start();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int tile_channel =
      warp % 2 * kScanWarpChannels + static_cast<int>(threadIdx.x) % kWarpSize % kScanWarpChannels;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x) * kChannelTile;
  const ScanChannel<kStates, State> scan(params.scan, first_channel + tile_channel);
  float h[kStepRounds][kStates];
#pragma unroll
  for (int i = 0; i < kStepRounds; ++i) {
    const int row = warp / 2 + i * kStepRows;
    if (row < params.num_rows) scan.Load(params.scan, params.scan.segments[row].read_slot, h[i]);
  }
  GridDependencyWait();
  float x[kStepRounds], z[kStepRounds];
#pragma unroll
  for (int i = 0; i < kStepRounds; ++i) {
    const int row = warp / 2 + i * kStepRows;
    const bool live = scan.live && row < params.num_rows;
    x[i] = live ? params.scan.x[row * params.scan.x_stride + scan.channel] : 0.0f;
    z[i] = live ? params.scan.z[row * params.scan.z_stride + scan.channel] : 0.0f;
  }

  FindScales(params, warp_sums, scales);
  StageProjected(params, scales, r, bc);
  MmaC sums[kStepTokenTiles] = {};
  stream.Multiply(sums, r);
  StorePartial<kStepTokenTiles>(partial, sums);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) / kRowTile < params.num_rows) {
    dt[threadIdx.x] =
        SumSegments<kStepTokenTiles>(partial, static_cast<int>(threadIdx.x) % kRowTile,
                                     static_cast<int>(threadIdx.x) / kRowTile);
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < kStepRounds; ++i) {
    const int row = warp / 2 + i * kStepRows;
    if (row >= params.num_rows) break;  // as a whole warp
    const float* row_bc = bc + row * 2 * params.scan.d_state;
    const float y = scan.Step(h[i], scan.live ? dt[row * kChannelTile + tile_channel] : 0.0f, x[i],
                              row_bc, row_bc + params.scan.d_state, params.scan.d_state);
    if (scan.live && scan.first_state == 0) {
      params.y[row * params.y_stride + scan.channel] = FloatToBF16Bits(y * Silu(z[i]));
    }
    scan.Store(params.scan, params.scan.segments[row].write_slot, h[i]);
  }
}

}  // namespace vivarium::kernels::cuda
