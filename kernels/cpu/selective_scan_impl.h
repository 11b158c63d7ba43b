// Selective scan of a range of channel tiles (see SelectiveScanParams in ops.h). A tile's state
// stays in the first-level cache (or in registers) while the tokens of a segment, or of a chain of
// segments, pass; prefill, chunked prefill and decode run this one step.
//
// State: float or uint16_t (the bits of a bf16), what the state is held in between tokens.
#pragma once

#include "kernels/cpu/math_impl.h"
#include "kernels/cpu/segment_chain_impl.h"

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

inline Vec LoadState(const float* h) { return Load(h); }
inline Vec LoadState(const uint16_t* h) { return LoadBF16(h); }
inline void StoreState(float* h, Vec v) { Store(h, v); }
inline void StoreState(uint16_t* h, Vec v) { StoreBF16(h, v); }

// Takes state h_in [d_state][16] over one token to h_out (which may be h_in). Returns
// sum_n C_n h_n.
template <typename State>
inline Vec ScanStep(const ScanInput& input, const float* a, const float* b, const float* c,
                    int32_t d_state, const State* h_in, State* h_out) {
  Vec sum = Set(0.0f);
#pragma GCC unroll 4
  for (int32_t n = 0; n < d_state; ++n) {
    const Vec decay = Exp2(Mul(input.dt_log2e, Load(a + n * kLanes)));
    const Vec next = MulAdd(decay, LoadState(h_in + n * kLanes), Mul(input.dt_x, Set(b[n])));
    StoreState(h_out + n * kLanes, next);
    sum = MulAdd(Set(c[n]), next, sum);
  }
  return sum;
}

// Takes one tile's state from h_in over tokens [token, token + num_tokens) to h_out.
template <typename State>
inline void ScanTokens(const SelectiveScanParams& params, const ScanInput* inputs, int64_t tile,
                       int64_t token, int num_tokens, const State* h_in, State* h_out) {
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

template <typename State>
inline void ZeroTile(int32_t d_state, State* h) {
  for (int32_t n = 0; n < d_state; ++n) StoreState(h + n * kLanes, Set(0.0f));
}

// Lanes from `count` on are stored as zeros, whatever passed through them.
template <typename State>
inline void StoreTile(const State* h, int32_t d_state, int count, State* tile) {
  for (int32_t n = 0; n < d_state; ++n) {
    for (int i = 0; i < kLanes; ++i)
      tile[n * kLanes + i] = i < count ? h[n * kLanes + i] : State{0};
  }
}

// Where a tile's state lies in `slot`; null for kPadSlot.
template <typename State>
inline State* FindTile(const SelectiveScanParams& params, int32_t slot, int64_t tile) {
  if (slot == kPadSlot) return nullptr;
  return static_cast<State*>(params.states) + slot * params.slot_stride +
         tile * params.d_state * kLanes;
}

// A segment by itself over tiles [begin, end). scratch: [d_state][16].
template <typename State>
inline void ScanSegment(const SelectiveScanParams& params, const Segment& segment, int64_t begin,
                        int64_t end, State* scratch) {
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
        State* const kept = FindTile<State>(params, segment.write_slot, tile);
        const int count = TileCount(params, tile);
        State* const h_out = kept != nullptr && count == kLanes ? kept : scratch;
        const State* h_in = h_out;
        if (done == 0) h_in = FindTile<State>(params, segment.read_slot, tile);
        if (h_in == nullptr) {
          ZeroTile(params.d_state, scratch);
          h_in = scratch;
        }
        ScanTokens(params, inputs + (tile - first) * num_tokens, tile, token, num_tokens, h_in,
                   h_out);
        if (last_block && kept != nullptr && count < kLanes) {
          StoreTile(scratch, params.d_state, count, kept);
        }
      }
    }
  }
}

// A chain of segments over one tile, its state in scratch from the first token to the last.
template <typename State>
inline void ScanChainTile(const SelectiveScanParams& params, const Segment* chain,
                          int64_t chain_length, int64_t tile, State* scratch) {
  ScanInput inputs[kPairsPerBlock];
  const State* h_in = FindTile<State>(params, chain->read_slot, tile);
  if (h_in == nullptr) {
    ZeroTile(params.d_state, scratch);
    h_in = scratch;
  }
  for (int64_t s = 0; s < chain_length; ++s) {
    for (int32_t done = 0; done < chain[s].num_tokens; done += kPairsPerBlock) {
      const int32_t left = chain[s].num_tokens - done;
      const int num_tokens = left < kPairsPerBlock ? left : kPairsPerBlock;
      const int64_t token = int64_t{chain[s].token_begin} + done;
      for (int i = 0; i < num_tokens; ++i) inputs[i] = PrepareInput(params, tile, token + i);
      ScanTokens(params, inputs, tile, token, num_tokens, h_in, scratch);
      h_in = scratch;
    }
    State* const kept = FindTile<State>(params, chain[s].write_slot, tile);
    if (kept != nullptr) StoreTile(scratch, params.d_state, TileCount(params, tile), kept);
  }
}

template <typename State>
void ScanSegments(const SelectiveScanParams& params, int64_t begin, int64_t end) {
  alignas(64) State scratch[kMaxStateSize * kLanes];  // 16 KiB at most
  int64_t length = 0;
  for (int64_t s = 0; s < params.num_segments; s += length) {
    length = ChainLength(params.segments, params.num_segments, s);
    if (length == 1) {
      ScanSegment(params, params.segments[s], begin, end, scratch);
      continue;
    }
    for (int64_t tile = begin; tile < end; ++tile) {
      ScanChainTile(params, params.segments + s, length, tile, scratch);
    }
  }
}

void SelectiveScan(const SelectiveScanParams& params, int64_t begin, int64_t end) {
  static_assert(kLanes == kChannelTile);
  if (params.state_dtype == DType::kBF16) {
    ScanSegments<uint16_t>(params, begin, end);
  } else {
    ScanSegments<float>(params, begin, end);
  }
}

}  // namespace
}  // namespace vivarium::kernels
