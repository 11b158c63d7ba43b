// Selective scan of a range of channel tiles (see SelectiveScanParams in ops.h). A tile's state
// stays in the first-level cache (or in registers) while the segment's tokens pass; prefill,
// chunked prefill and decode run this one step.
#pragma once

#include "kernels/cpu/math_impl.h"

namespace vivarium::kernels {
namespace {

// What one token brings to a tile of sixteen channels.
struct ScanInput {
  Vec x;
  Vec z;
  Vec dt;
  const float* b;  // [d_state]
  const float* c;  // [d_state]
};

struct ScanWeights {
  const float* a;  // [d_state][16]
  Vec dt_bias;
  Vec d_skip;
};

// Advances state h [d_state][16] by one token and returns y.
inline Vec ScanStep(const ScanWeights& weights, const ScanInput& input, int32_t d_state, float* h) {
  const Vec dt = Softplus(Add(input.dt, weights.dt_bias));
  const Vec dt_log2e = Mul(dt, Set(kLog2E));
  const Vec dt_x = Mul(dt, input.x);
  Vec sum = Set(0.0f);
  for (int32_t n = 0; n < d_state; ++n) {
    const Vec decay = Exp2(Mul(dt_log2e, Load(weights.a + n * kLanes)));
    const Vec next = MulAdd(decay, Load(h + n * kLanes), Mul(dt_x, Set(input.b[n])));
    Store(h + n * kLanes, next);
    sum = MulAdd(Set(input.c[n]), next, sum);
  }
  return Mul(MulAdd(weights.d_skip, input.x, sum), Silu(input.z));
}

inline void LoadTileState(const float* tile, int32_t d_state, float* h) {
  for (int32_t n = 0; n < d_state; ++n) {
    Store(h + n * kLanes, tile == nullptr ? Set(0.0f) : Load(tile + n * kLanes));
  }
}

// Lanes beyond `count` are stored as zeros, whatever passed through them.
inline void StoreTileState(const float* h, int32_t d_state, int count, float* tile) {
  for (int32_t n = 0; n < d_state; ++n) {
    Store(tile + n * kLanes, LoadPartial(h + n * kLanes, count));
  }
}

inline void ScanTile(const SelectiveScanParams& params, const Segment& segment, int64_t tile,
                     float* h) {
  const int64_t channel = tile * kLanes;
  const int64_t left = params.channels - channel;
  const int count = left < kLanes ? static_cast<int>(left) : kLanes;
  const int64_t tile_begin = tile * params.d_state * kLanes;
  const ScanWeights weights{params.a + tile_begin, LoadPartial(params.dt_bias + channel, count),
                            LoadPartial(params.d_skip + channel, count)};
  LoadTileState(segment.read_slot == kPadSlot
                    ? nullptr
                    : params.states + segment.read_slot * params.slot_stride + tile_begin,
                params.d_state, h);
  for (int64_t t = segment.token_begin; t < segment.token_begin + segment.num_tokens; ++t) {
    const ScanInput input{LoadPartial(params.x + t * params.x_stride + channel, count),
                          LoadPartial(params.z + t * params.z_stride + channel, count),
                          LoadPartial(params.dt + t * params.dt_stride + channel, count),
                          params.b + t * params.bc_stride, params.c + t * params.bc_stride};
    const Vec y = ScanStep(weights, input, params.d_state, h);
    StorePartial(params.y + t * params.y_stride + channel, y, count);
  }
  if (segment.write_slot == kPadSlot) return;
  StoreTileState(h, params.d_state, count,
                 params.states + segment.write_slot * params.slot_stride + tile_begin);
}

void SelectiveScan(const SelectiveScanParams& params, int64_t begin, int64_t end) {
  static_assert(kLanes == kChannelTile);
  alignas(64) float h[kMaxStateSize * kLanes];  // 16 KiB
  for (int64_t s = 0; s < params.num_segments; ++s) {
    for (int64_t tile = begin; tile < end; ++tile) {
      ScanTile(params, params.segments[s], tile, h);
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
