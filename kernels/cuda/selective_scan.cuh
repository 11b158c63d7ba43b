// SelectiveScan, Mamba-1: the state stays in registers from the first token of a segment, or of a
// chain of segments, to the last one.
//
// Four lanes share a channel, each with a quarter of its states; a warp has 8 channels, a block 32.
// Inputs come in tiles of kTokens tokens by asynchronous copies into two buffers of shared memory:
// one tile is computed while the next one is on its way. Softplus and gate are computed once per
// token and channel, by whoever copied the input, before the lanes pass over the tile. Decode is a
// segment of one token: the same arithmetic in the same order, so prefill, chunked prefill and
// decode agree bit for bit. Bound: E * N exponentials a token and layer (the special function
// units), not memory.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/segment.cuh"
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

// Whether rows of four floats from `base` on are aligned for CopyAsync16.
__device__ __forceinline__ bool IsVectorAligned(const float* base, int64_t stride) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride % 4 == 0;
}

// Begins to copy four neighbours, of which the first `count` exist.
__device__ __forceinline__ void CopyFour(float* tile, const float* source, int count,
                                         bool is_aligned) {
  if (is_aligned && count >= 4) {
    CopyAsync16(tile, source);
    return;
  }
  for (int i = 0; i < 4 && i < count; ++i) CopyAsync4(tile + i, source + i);
}

// What a thread copies of a tile and prepares: of every (kScanThreads / kScanGroups)th token, four
// neighbouring channels, always the same.
inline constexpr int kScanGroups = kScanChannels / 4;  // of a token

// Begins to copy tokens [begin, begin + count) of this block's channels into `tile`.
template <int kTokens>
__device__ __forceinline__ void LoadScanTile(const SelectiveScanParams& params, int begin,
                                             int count, int64_t first_channel, float* tile) {
  using Tile = ScanTile<kTokens>;
  const int group = static_cast<int>(threadIdx.x) % kScanGroups * 4;
  const int64_t channel = first_channel + group;
  const int64_t channels_left = params.channels - channel;
  const int present = static_cast<int>(channels_left < 4 ? channels_left : 4);
  const bool x_aligned = IsVectorAligned(params.x, params.x_stride);
  const bool z_aligned = IsVectorAligned(params.z, params.z_stride);
  const bool dt_aligned = IsVectorAligned(params.dt, params.dt_stride);
  for (int t = static_cast<int>(threadIdx.x) / kScanGroups; t < count;
       t += kScanThreads / kScanGroups) {
    const int64_t token = int64_t{begin} + t;
    const int i = t * kScanChannels + group;
    CopyFour(tile + Tile::kX + i, params.x + token * params.x_stride + channel, present, x_aligned);
    CopyFour(tile + Tile::kZ + i, params.z + token * params.z_stride + channel, present, z_aligned);
    CopyFour(tile + Tile::kDt + i, params.dt + token * params.dt_stride + channel, present,
             dt_aligned);
  }
  float* b = tile + Tile::kB;
  float* c = b + kTokens * params.d_state;
  const bool bc_aligned = params.d_state % 4 == 0 && IsVectorAligned(params.b, params.bc_stride) &&
                          IsVectorAligned(params.c, params.bc_stride);
  const int state_groups = (params.d_state + 3) / 4;
  for (int i = threadIdx.x; i < count * state_groups; i += kScanThreads) {
    const int t = i / state_groups;
    const int n = i % state_groups * 4;
    const int64_t offset = (int64_t{begin} + t) * params.bc_stride + n;
    CopyFour(b + t * params.d_state + n, params.b + offset, params.d_state - n, bc_aligned);
    CopyFour(c + t * params.d_state + n, params.c + offset, params.d_state - n, bc_aligned);
  }
}

// In place, of what this thread has copied: dt becomes softplus(dt + bias), z becomes silu(z).
template <int kTokens>
__device__ __forceinline__ void PrepareScanTile(const SelectiveScanParams& params, int count,
                                                int64_t first_channel, float* tile) {
  using Tile = ScanTile<kTokens>;
  const int group = static_cast<int>(threadIdx.x) % kScanGroups * 4;
  const float* const dt_bias = params.dt_bias + first_channel + group;
  const int64_t channels_left = params.channels - first_channel - group;
  for (int t = static_cast<int>(threadIdx.x) / kScanGroups; t < count;
       t += kScanThreads / kScanGroups) {
    float* const dt = tile + Tile::kDt + t * kScanChannels + group;
    float* const z = tile + Tile::kZ + t * kScanChannels + group;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < channels_left) {
        dt[i] = Softplus(dt[i] + dt_bias[i]);
        z[i] = Silu(z[i]);
      }
    }
  }
}

// What a state is held in between tokens: f32, or bf16 as its 16 bits.
template <typename State>
struct StateFormat;
template <>
struct StateFormat<float> {
  static __device__ __forceinline__ float Round(float h) { return h; }
  static __device__ __forceinline__ float Read(float h) { return h; }
  static __device__ __forceinline__ float Write(float h) { return h; }
};
template <>
struct StateFormat<uint16_t> {
  static __device__ __forceinline__ float Round(float h) {
    return BF16BitsToFloat(FloatToBF16Bits(h));
  }
  static __device__ __forceinline__ float Read(uint16_t bits) { return BF16BitsToFloat(bits); }
  static __device__ __forceinline__ uint16_t Write(float h) { return FloatToBF16Bits(h); }
};

// A lane's part of a channel: kStates of its states, from first_state on. Four lanes,
// kScanWarpChannels apart in the warp, share a channel. A channel past the last one, up to the
// tile's end, has zeros.
template <int kStates, typename State = float>
struct ScanChannel {
  using Format = StateFormat<State>;
  int64_t channel;
  int first_state;
  bool live;
  int64_t
      state_offset;  // state n of this channel is at state_offset + n * kChannelTile of its slot
  float dt_bias, d_skip;
  float a_log2e[kStates];

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
                 ? Format::Read(static_cast<const State*>(
                       params.states)[read_slot * params.slot_stride + Offset(j)])
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
        static_cast<State*>(params.states)[write_slot * params.slot_stride + Offset(j)] =
            Format::Write(live ? h[j] : 0.0f);
      }
    }
  }

  // One token, b and c [d_state]: h = exp(d a) h + (d x) b, d = softplus(dt + dt_bias), rounded to
  // State; returns sum_n c h + d_skip x, on each of the four lanes.
  __device__ __forceinline__ float Step(float (&h)[kStates], float dt, float x, const float* b,
                                        const float* c, int d_state) const {
    return Advance(h, Softplus(dt + dt_bias), x, b, c, d_state);
  }

  // Step for a d that is known.
  __device__ __forceinline__ float Advance(float (&h)[kStates], float d, float x, const float* b,
                                           const float* c, int d_state) const {
    const float dx = d * x;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kStates; ++j) {
      const int n = first_state + j;
      if (n < d_state) {
        const float next = fmaf(Exp2(d * a_log2e[j]), h[j], dx * b[n]);
        sum = fmaf(c[n], next, sum);
        h[j] = Format::Round(next);
      }
    }
    sum += __shfl_xor_sync(kFullWarp, sum, kScanWarpChannels);
    sum += __shfl_xor_sync(kFullWarp, sum, 2 * kScanWarpChannels);
    return fmaf(d_skip, x, sum);
  }
};

// Takes the block's states over tokens [first_token, end).
template <int kTokens, int kStates, typename State>
__device__ __forceinline__ void ScanTokens(const SelectiveScanParams& params,
                                           const ScanChannel<kStates, State>& scan, int first_token,
                                           int end, float (&h)[kStates]) {
  using Tile = ScanTile<kTokens>;
  DYNAMIC_SHARED(float, tiles);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x) * kScanChannels;
  const int local_channel = static_cast<int>(scan.channel - first_channel);
  const int tile_floats = Tile::Floats(params.d_state);
  const auto tile_count = [&](int begin) { return end - begin < kTokens ? end - begin : kTokens; };
  LoadScanTile<kTokens>(params, first_token, tile_count(first_token), first_channel, tiles);
  CopyCommit();
  int buffer = 0;
  for (int begin = first_token; begin < end; begin += kTokens, buffer ^= 1) {
    float* tile = tiles + buffer * tile_floats;
    const int next = begin + kTokens;
    if (next < end) {
      LoadScanTile<kTokens>(params, next, tile_count(next), first_channel,
                            tiles + (buffer ^ 1) * tile_floats);
    }
    CopyCommit();
    CopyWait<1>();  // this thread's copies of this tile are there
    const int count = tile_count(begin);
    PrepareScanTile<kTokens>(params, count, first_channel, tile);
    __syncthreads();  // everybody's are there, and prepared
    const float* b = tile + Tile::kB;
    const float* c = b + kTokens * params.d_state;
    for (int t = 0; t < count; ++t) {
      const int i = t * kScanChannels + local_channel;
      const float x = scan.live ? tile[Tile::kX + i] : 0.0f;
      const float y = scan.Advance(h, scan.live ? tile[Tile::kDt + i] : 0.0f, x,
                                   b + t * params.d_state, c + t * params.d_state, params.d_state);
      if (scan.live && scan.first_state == 0) {
        params.y[(int64_t{begin} + t) * params.y_stride + scan.channel] = y * tile[Tile::kZ + i];
      }
    }
    __syncthreads();  // nobody reads this buffer when the copies after the next begin
  }
}

// Blocks of a multiprocessor: what the registers of a lane's states leave room for.
constexpr int ScanBlocks(int states) {
  return states <= 4 ? 7 : states <= 8 ? 5 : states <= 16 ? 3 : 1;
}

// Grid (ceil(channels / kScanChannels), num_segments), kScanThreads threads, two tiles of shared
// memory. kStates = states of a lane: 4 * kStates >= d_state.
template <int kStates, int kTokens, typename State>
__global__ void __launch_bounds__(kScanThreads, ScanBlocks(kStates))
    SelectiveScanKernel(SelectiveScanParams params) {
  const int head = static_cast<int>(blockIdx.y);
  if (IsContinued(params, head)) return;
  const int lane = threadIdx.x % kWarpSize;
  const int local_channel =
      static_cast<int>(threadIdx.x) / kWarpSize * kScanWarpChannels + lane % kScanWarpChannels;
  const ScanChannel<kStates, State> scan(
      params, static_cast<int64_t>(blockIdx.x) * kScanChannels + local_channel);
  float h[kStates];
  scan.Load(params, params.segments[head].read_slot, h);

  ChainWalk walk(params, head);
  do {
    ScanTokens<kTokens>(params, scan, walk.begin, walk.end, h);
    scan.Store(params, walk.write_slot, h);
  } while (walk.Next(params));
}

template <int kStates, typename State>
void LaunchSelectiveScanOf(const SelectiveScanParams& params, cudaStream_t stream) {
  if (params.d_state > kStates * kScanLanes) {
    if constexpr (kStates * kScanLanes < kMaxStateSize) {
      LaunchSelectiveScanOf<kStates * 2, State>(params, stream);
    }
    return;
  }
  constexpr int kTokens = kStates <= 8 ? 16 : 4;
  const dim3 grid(static_cast<unsigned>((params.channels + kScanChannels - 1) / kScanChannels),
                  static_cast<unsigned>(params.num_segments));
  const size_t shared_bytes = 2 * sizeof(float) * ScanTile<kTokens>::Floats(params.d_state);
  LAUNCH((SelectiveScanKernel<kStates, kTokens, State>), grid, dim3(kScanThreads), shared_bytes,
         stream, params);
}

inline void LaunchSelectiveScan(const SelectiveScanParams& params, cudaStream_t stream) {
  if (params.state_dtype == DType::kBF16) {
    LaunchSelectiveScanOf<1, uint16_t>(params, stream);
  } else {
    LaunchSelectiveScanOf<1, float>(params, stream);
  }
}

}  // namespace vivarium::kernels::cuda
