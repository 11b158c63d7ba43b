// SelectiveScan, Mamba-1: the state stays in registers from the segment's first token to its last.
//
// Four lanes share a channel, each with a quarter of its states; a warp has 8 channels, a block 32.
// Inputs come in tiles of kTokens tokens by asynchronous copies into two buffers of shared memory:
// one tile is computed while the next one is on its way. Decode is a segment of one token: the same
// arithmetic in the same order, so prefill, chunked prefill and decode agree bit for bit.
// Bound: E * N exponentials a token and layer (the special function units), not memory.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kScanThreads = 128;
inline constexpr int kScanLanes = 4;                             // of a channel
inline constexpr int kScanChannels = kScanThreads / kScanLanes;  // of a block
inline constexpr int kScanWarpChannels = kWarpSize / kScanLanes;

// Where a tile's inputs are in shared memory, in floats.
template <int kTokens>
struct ScanTile {
  static constexpr int kX = 0;
  static constexpr int kZ = kTokens * kScanChannels;
  static constexpr int kDt = 2 * kTokens * kScanChannels;
  static constexpr int kB = 3 * kTokens * kScanChannels;
  __host__ __device__ static int Floats(int d_state) { return kB + 2 * kTokens * d_state; }
};

// Begins to copy tokens [begin, begin + count) of this block's channels into `tile`.
template <int kTokens>
__device__ void LoadScanTile(const SelectiveScanParams& params, int64_t begin, int count,
                             int64_t first_channel, float* tile) {
  using Tile = ScanTile<kTokens>;
  for (int i = threadIdx.x; i < count * kScanChannels; i += kScanThreads) {
    const int64_t token = begin + i / kScanChannels;
    const int64_t channel = first_channel + i % kScanChannels;
    if (channel < params.channels) {
      CopyAsync4(tile + Tile::kX + i, params.x + token * params.x_stride + channel);
      CopyAsync4(tile + Tile::kZ + i, params.z + token * params.z_stride + channel);
      CopyAsync4(tile + Tile::kDt + i, params.dt + token * params.dt_stride + channel);
    }
  }
  float* b = tile + Tile::kB;
  float* c = b + kTokens * params.d_state;
  for (int i = threadIdx.x; i < count * params.d_state; i += kScanThreads) {
    const int64_t offset = (begin + i / params.d_state) * params.bc_stride + i % params.d_state;
    CopyAsync4(b + i, params.b + offset);
    CopyAsync4(c + i, params.c + offset);
  }
}

// A lane's part of a channel: kStates of its states, from first_state on. Four lanes,
// kScanWarpChannels apart in the warp, share a channel. A channel past the last one, up to the
// tile's end, has zeros.
template <int kStates>
struct ScanChannel {
  int64_t channel;
  int first_state;
  bool live;
  int64_t
      state_offset;  // state n of this channel is at state_offset + n * kChannelTile of its slot
  float a_log2e[kStates];
  float dt_bias, d_skip;

  __device__ __forceinline__ ScanChannel(const SelectiveScanParams& params, int64_t channel_index)
      : channel(channel_index),
        first_state(static_cast<int>(threadIdx.x) % kWarpSize / kScanWarpChannels * kStates),
        live(channel < params.channels),
        state_offset(channel / kChannelTile * params.d_state * kChannelTile +
                     channel % kChannelTile),
        dt_bias(live ? params.dt_bias[channel] : 0.0f),
        d_skip(live ? params.d_skip[channel] : 0.0f) {
#pragma unroll
    for (int j = 0; j < kStates; ++j) {
      a_log2e[j] = Used(params, j) ? params.a[Offset(j)] * kLog2E : 0.0f;
    }
  }
  __device__ __forceinline__ bool Used(const SelectiveScanParams& params, int j) const {
    return live && first_state + j < params.d_state;
  }
  __device__ __forceinline__ int64_t Offset(int j) const {
    return state_offset + static_cast<int64_t>(first_state + j) * kChannelTile;
  }

  __device__ __forceinline__ void Load(const SelectiveScanParams& params, int32_t read_slot,
                                       float (&h)[kStates]) const {
#pragma unroll
    for (int j = 0; j < kStates; ++j) {
      h[j] = Used(params, j) && read_slot >= 0
                 ? params.states[read_slot * params.slot_stride + Offset(j)]
                 : 0.0f;
    }
  }

  // Padded lanes stay 0.
  __device__ __forceinline__ void Store(const SelectiveScanParams& params, int32_t write_slot,
                                        const float (&h)[kStates]) const {
    const int64_t padded = (params.channels + kChannelTile - 1) / kChannelTile * kChannelTile;
    if (write_slot < 0 || channel >= padded) return;
#pragma unroll
    for (int j = 0; j < kStates; ++j) {
      if (first_state + j < params.d_state) {
        params.states[write_slot * params.slot_stride + Offset(j)] = live ? h[j] : 0.0f;
      }
    }
  }

  // One token, b and c [d_state]: h = exp(d a) h + (d x) b; returns sum_n c h + d_skip x, on each
  // of the four lanes.
  __device__ __forceinline__ float Step(float (&h)[kStates], float dt, float x, const float* b,
                                        const float* c, int d_state) const {
    const float d = Softplus(dt + dt_bias);
    const float dx = d * x;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kStates; ++j) {
      const int n = first_state + j;
      if (n < d_state) {
        h[j] = fmaf(Exp2(d * a_log2e[j]), h[j], dx * b[n]);
        sum = fmaf(c[n], h[j], sum);
      }
    }
    sum += __shfl_xor_sync(kFullWarp, sum, kScanWarpChannels);
    sum += __shfl_xor_sync(kFullWarp, sum, 2 * kScanWarpChannels);
    return fmaf(d_skip, x, sum);
  }
};

// Grid (ceil(channels / kScanChannels), num_segments), kScanThreads threads, two tiles of shared
// memory. kStates = states of a lane: 4 * kStates >= d_state.
template <int kStates, int kTokens>
__global__ void __launch_bounds__(kScanThreads) SelectiveScanKernel(SelectiveScanParams params) {
  using Tile = ScanTile<kTokens>;
  DYNAMIC_SHARED(float, tiles);
  const Segment segment = params.segments[blockIdx.y];
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x) * kScanChannels;
  const int lane = threadIdx.x % kWarpSize;
  const int local_channel =
      static_cast<int>(threadIdx.x) / kWarpSize * kScanWarpChannels + lane % kScanWarpChannels;
  const int64_t channel = first_channel + local_channel;
  const int tile_floats = Tile::Floats(params.d_state);
  const ScanChannel<kStates> scan(params, channel);
  float h[kStates];
  scan.Load(params, segment.read_slot, h);

  const int64_t end = static_cast<int64_t>(segment.token_begin) + segment.num_tokens;
  const auto tile_count = [&](int64_t begin) {
    return static_cast<int>(end - begin < kTokens ? end - begin : kTokens);
  };
  LoadScanTile<kTokens>(params, segment.token_begin, tile_count(segment.token_begin), first_channel,
                        tiles);
  CopyCommit();
  int buffer = 0;
  for (int64_t begin = segment.token_begin; begin < end; begin += kTokens, buffer ^= 1) {
    const float* tile = tiles + buffer * tile_floats;
    const int64_t next = begin + kTokens;
    if (next < end) {
      LoadScanTile<kTokens>(params, next, tile_count(next), first_channel,
                            tiles + (buffer ^ 1) * tile_floats);
    }
    CopyCommit();
    CopyWait<1>();
    __syncthreads();  // everybody's copies of this tile are there
    const float* b = tile + Tile::kB;
    const float* c = b + kTokens * params.d_state;
    const int count = tile_count(begin);
    for (int t = 0; t < count; ++t) {
      const int i = t * kScanChannels + local_channel;
      const float x = scan.live ? tile[Tile::kX + i] : 0.0f;
      const float y = scan.Step(h, scan.live ? tile[Tile::kDt + i] : 0.0f, x,
                                b + t * params.d_state, c + t * params.d_state, params.d_state);
      if (scan.live && scan.first_state == 0) {
        params.y[(begin + t) * params.y_stride + channel] = y * Silu(tile[Tile::kZ + i]);
      }
    }
    __syncthreads();  // nobody reads this buffer when the copies after the next begin
  }
  scan.Store(params, segment.write_slot, h);
}

template <int kStates = 1>
void LaunchSelectiveScan(const SelectiveScanParams& params, cudaStream_t stream) {
  if (params.d_state > kStates * kScanLanes) {
    if constexpr (kStates * kScanLanes < kMaxStateSize) {
      LaunchSelectiveScan<kStates * 2>(params, stream);
    }
    return;
  }
  constexpr int kTokens = kStates <= 8 ? 16 : 4;
  const dim3 grid(static_cast<unsigned>((params.channels + kScanChannels - 1) / kScanChannels),
                  static_cast<unsigned>(params.num_segments));
  const size_t shared_bytes = 2 * sizeof(float) * ScanTile<kTokens>::Floats(params.d_state);
  LAUNCH((SelectiveScanKernel<kStates, kTokens>), grid, dim3(kScanThreads), shared_bytes, stream,
         params);
}

}  // namespace vivarium::kernels::cuda
