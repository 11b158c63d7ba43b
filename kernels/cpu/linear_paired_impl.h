// Matrix product of bf16 weights in pairs along K by vdpbf16ps (AVX512-BF16): each instruction adds
// two products to each of sixteen f32 accumulators, in an order of its own, rounding to nearest
// even and flushing subnormals whatever MXCSR says. Activations come in rounded to bf16
// (RoundToBF16).
#pragma once

#include "kernels/cpu/linear_impl.h"

namespace vivarium::kernels {
namespace {

template <int kRows, int kVectors>
struct PairedTile {
  static void Run(const LinearPanel& panel, int64_t row) {
    const auto* w = static_cast<const uint16_t*>(panel.weight);
    const uint16_t* x = static_cast<const uint16_t*>(panel.x) + row * panel.x_stride;
    Vec acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Set(0.0f);
    }
    for (int64_t k = 0; k < panel.depth; ++k) {
      __m512i pairs[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) pairs[v] = _mm512_loadu_si512(w + v * 2 * kLanes);
      if (kRows >= kMinPrefetchRows && row == 0) {
        PrefetchAhead<kVectors * 2 * kLanes * sizeof(uint16_t)>(w);
      }
      w += kVectors * 2 * kLanes;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        __builtin_memcpy(&pair, x + r * panel.x_stride + 2 * k, sizeof(pair));
        const auto value = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          acc[r][v].v = _mm512_dpbf16_ps(acc[r][v].v, value, reinterpret_cast<__m512bh>(pairs[v]));
        }
      }
    }
    StoreTile<kRows, kVectors>(acc, panel, row);
  }
};

void LinearBF16(const LinearPanel& panel) { RunPanel<PairedTile>(panel); }

void RoundToBF16(const float* src, int64_t count, uint16_t* dst, int64_t padded_count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(src + i))));
  }
  if (i < count) {
    const Vec tail = LoadPartial(src + i, static_cast<int>(count - i));
    _mm256_mask_storeu_epi16(dst + i, FirstLanes(static_cast<int>(count - i)),
                             reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(tail.v)));
  }
  for (i = count; i < padded_count; ++i) dst[i] = 0;
}

}  // namespace
}  // namespace vivarium::kernels
