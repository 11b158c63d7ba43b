// Selective scan of a range of channel tiles (see SelectiveScanParams in ops.h). A tile's state
// stays in the first-level cache (or in registers) while the segment's tokens pass; prefill,
// chunked prefill and decode run this one step.
#pragma once

#include "kernels/cpu/math_impl.h"

namespace vivarium::kernels {
namespace {

// Inputs of this many (tile, token) pairs are prepared before any state passes over them: softplus
// and SiLU are long chains of dependent operations, which overlap with each other but hardly with
// an update. Decode takes sixteen tiles of a token, prefill sixteen tokens of a tile.
constexpr int kPairsPerBlock = 16;

// What a token brings to a tile of sixteen channels.
struct ScanInput {
  Vec dt_log2e;  // softplus(dt + bias) * log2(e)
  Vec dt_x;      // softplus(dt + bias) * x
  Vec x;
  Vec gate;  // silu(z)
};

inline int TileCount(const SelectiveScanParams& params, int64_t tile) {
  const int64_t left = params.channels - tile * kLanes;
  return left < kLanes ? static_cast<int>(left) : kLanes;
}

inline ScanInput PrepareInput(const SelectiveScanParams& params, int64_t tile, int64_t t) {
  const int64_t channel = tile * kLanes;
  const int count = TileCount(params, tile);
  const Vec x = LoadPartial(params.x + t * params.x_stride + channel, count);
  const Vec dt = Softplus(Add(LoadPartial(params.dt + t * params.dt_stride + channel, count),
                              LoadPartial(params.dt_bias + channel, count)));
  return {Mul(dt, Set(kLog2E)), Mul(dt, x), x,
          Silu(LoadPartial(params.z + t * params.z_stride + channel, count))};
}

// Takes state h_in [d_state][16] over one token to h_out (which may be h_in). Returns
// sum_n C_n h_n.
inline Vec ScanStep(const ScanInput& input, const float* a, const float* b, const float* c,
                    int32_t d_state, const float* h_in, float* h_out) {
  Vec sum = Set(0.0f);
#pragma GCC unroll 4
  for (int32_t n = 0; n < d_state; ++n) {
    const Vec decay = Exp2(Mul(input.dt_log2e, Load(a + n * kLanes)));
    const Vec next = MulAdd(decay, Load(h_in + n * kLanes), Mul(input.dt_x, Set(b[n])));
    Store(h_out + n * kLanes, next);
    sum = MulAdd(Set(c[n]), next, sum);
  }
  return sum;
}

// Takes one tile's state from h_in over tokens [token, token + num_tokens) to h_out.
inline void ScanTokens(const SelectiveScanParams& params, const ScanInput* inputs, int64_t tile,
                       int64_t token, int num_tokens, const float* h_in, float* h_out) {
  const int64_t channel = tile * kLanes;
  const int count = TileCount(params, tile);
  const Vec d_skip = LoadPartial(params.d_skip + channel, count);
  const float* a = params.a + tile * params.d_state * kLanes;
  for (int i = 0; i < num_tokens; ++i) {
    const int64_t t = token + i;
    const Vec sum = ScanStep(inputs[i], a, params.b + t * params.bc_stride,
                             params.c + t * params.bc_stride, params.d_state, h_in, h_out);
    StorePartial(params.y + t * params.y_stride + channel,
                 Mul(MulAdd(d_skip, inputs[i].x, sum), inputs[i].gate), count);
    h_in = h_out;
  }
}

inline void ZeroTile(int32_t d_state, float* h) {
  for (int32_t n = 0; n < d_state; ++n) Store(h + n * kLanes, Set(0.0f));
}

// Lanes beyond `count` are stored as zeros, whatever passed through them.
inline void StorePaddedTile(const float* h, int32_t d_state, int count, float* tile) {
  for (int32_t n = 0; n < d_state; ++n) {
    Store(tile + n * kLanes, LoadPartial(h + n * kLanes, count));
  }
}

// Where the state of a segment's tile lies.
struct TileState {
  const float* read;  // null: zero
  float* write;       // null: not kept
};

inline TileState FindTileState(const SelectiveScanParams& params, const Segment& segment,
                               int64_t tile) {
  const int64_t offset = tile * params.d_state * kLanes;
  return {segment.read_slot == kPadSlot
              ? nullptr
              : params.states + segment.read_slot * params.slot_stride + offset,
          segment.write_slot == kPadSlot
              ? nullptr
              : params.states + segment.write_slot * params.slot_stride + offset};
}

// One segment over tiles [begin, end). scratch: [d_state][16].
inline void ScanSegment(const SelectiveScanParams& params, const Segment& segment, int64_t begin,
                        int64_t end, float* scratch) {
  // More than one tile per block only where one block holds all tokens.
  const int64_t tiles_per_block =
      segment.num_tokens < kPairsPerBlock ? kPairsPerBlock / segment.num_tokens : 1;
  ScanInput inputs[kPairsPerBlock];
  for (int64_t first = begin; first < end; first += tiles_per_block) {
    const int64_t last = first + tiles_per_block < end ? first + tiles_per_block : end;
    for (int32_t done = 0; done < segment.num_tokens; done += kPairsPerBlock) {
      const int32_t left = segment.num_tokens - done;
      const int num_tokens = left < kPairsPerBlock ? left : kPairsPerBlock;
      const int64_t token = int64_t{segment.token_begin} + done;
      const bool last_block = left <= kPairsPerBlock;
      for (int64_t tile = first; tile < last; ++tile) {
        for (int i = 0; i < num_tokens; ++i) {
          inputs[(tile - first) * num_tokens + i] = PrepareInput(params, tile, token + i);
        }
      }
      for (int64_t tile = first; tile < last; ++tile) {
        const TileState state = FindTileState(params, segment, tile);
        const int count = TileCount(params, tile);
        float* const h_out = state.write != nullptr && count == kLanes ? state.write : scratch;
        const float* h_in = h_out;
        if (done == 0) h_in = state.read;
        if (h_in == nullptr) {
          ZeroTile(params.d_state, scratch);
          h_in = scratch;
        }
        ScanTokens(params, inputs + (tile - first) * num_tokens, tile, token, num_tokens, h_in,
                   h_out);
        if (last_block && state.write != nullptr && count < kLanes) {
          StorePaddedTile(scratch, params.d_state, count, state.write);
        }
      }
    }
  }
}

void SelectiveScan(const SelectiveScanParams& params, int64_t begin, int64_t end) {
  static_assert(kLanes == kChannelTile);
  alignas(64) float scratch[kMaxStateSize * kLanes];  // 16 KiB
  for (int64_t s = 0; s < params.num_segments; ++s) {
    ScanSegment(params, params.segments[s], begin, end, scratch);
  }
}

}  // namespace
}  // namespace vivarium::kernels
