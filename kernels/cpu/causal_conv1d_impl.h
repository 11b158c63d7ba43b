// Causal convolution of a range of channels (see CausalConv1dParams in ops.h). Sixteen channels at
// a time, their window of inputs carried from token to token: prefill and decode take the same
// step.
#pragma once

#include "kernels/cpu/math_impl.h"
#include "kernels/cpu/segment_chain_impl.h"

namespace vivarium::kernels {
namespace {

// Channels lie pages apart from token to token, which no hardware prefetcher follows.
constexpr int64_t kPrefetchTokens = 32;

// The last inputs of a channel tile, oldest first: window[0 .. width-2].
struct ConvWindow {
  Vec input[kMaxConvWidth];
};

// One token of one channel tile: pushes `input`, returns the activated output. weight[j] as in
// ops.h; bias first, then the taps from the oldest on.
template <int kWidth>
inline Vec ConvStep(const Vec* weight, Vec bias, int32_t width, Vec input, ConvWindow* window) {
  const int32_t taps = kWidth > 0 ? kWidth : width;
  window->input[taps - 1] = input;
  Vec sum = bias;
#pragma GCC unroll 4
  for (int32_t j = 0; j < taps; ++j) sum = MulAdd(weight[j], window->input[j], sum);
#pragma GCC unroll 4
  for (int32_t j = 0; j + 1 < taps; ++j) window->input[j] = window->input[j + 1];
  return Silu(sum);
}

// Takes the window over a segment's tokens.
template <int kWidth>
inline void ConvTokens(const CausalConv1dParams& params, const Segment& segment, int64_t channel,
                       int count, const Vec* weight, Vec bias, ConvWindow* window) {
  const float* x = params.x + segment.token_begin * params.x_stride + channel;
  float* out = params.out + segment.token_begin * params.out_stride + channel;
  for (int32_t t = 0; t < segment.num_tokens; ++t) {
    if (t + kPrefetchTokens < segment.num_tokens) {
      __builtin_prefetch(x + kPrefetchTokens * params.x_stride);
      __builtin_prefetch(out + kPrefetchTokens * params.out_stride, 1);
    }
    const Vec input = LoadPartial(x, count);
    StorePartial(out, ConvStep<kWidth>(weight, bias, params.width, input, window), count);
    x += params.x_stride;
    out += params.out_stride;
  }
}

// A chain of segments. kWidth: the width when it is known at compile time, else 0.
template <int kWidth>
inline void ConvTile(const CausalConv1dParams& params, const Segment* chain, int64_t chain_length,
                     int64_t channel, int count) {
  const int32_t width = kWidth > 0 ? kWidth : params.width;
  Vec weight[kMaxConvWidth];
  ConvWindow window;
  const Vec bias = params.bias == nullptr ? Set(0.0f) : LoadPartial(params.bias + channel, count);
  const float* old_state = chain->read_slot == kPadSlot
                               ? nullptr
                               : params.states + chain->read_slot * params.slot_stride + channel;
  for (int32_t j = 0; j < width; ++j) {
    weight[j] = LoadPartial(params.weight + j * params.channels + channel, count);
    if (j + 1 == width) break;
    window.input[j] =
        old_state == nullptr ? Set(0.0f) : LoadPartial(old_state + j * params.channels, count);
  }
  for (int64_t s = 0; s < chain_length; ++s) {
    ConvTokens<kWidth>(params, chain[s], channel, count, weight, bias, &window);
    if (chain[s].write_slot == kPadSlot) continue;
    float* new_state = params.states + chain[s].write_slot * params.slot_stride + channel;
    for (int32_t j = 0; j + 1 < width; ++j) {
      StorePartial(new_state + j * params.channels, window.input[j], count);
    }
  }
}

void CausalConv1d(const CausalConv1dParams& params, int64_t begin, int64_t end) {
  int64_t length = 0;
  for (int64_t s = 0; s < params.num_segments; s += length) {
    length = ChainLength(params.segments, params.num_segments, s);
    for (int64_t channel = begin; channel < end; channel += kLanes) {
      const int count = end - channel < kLanes ? static_cast<int>(end - channel) : kLanes;
      if (params.width == 4) {
        ConvTile<4>(params, params.segments + s, length, channel, count);
      } else {
        ConvTile<0>(params, params.segments + s, length, channel, count);
      }
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
