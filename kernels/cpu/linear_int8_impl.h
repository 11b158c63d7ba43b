// Matrix product of int8 weights in fours along K by vpdpbusd (AVX512-VNNI): each instruction adds
// four products of an unsigned and a signed byte to each of sixteen int32 accumulators, exactly.
// Weights come unsigned, plus 128; what that adds is -128 times the sum of the activations, where
// the accumulators begin. Activations come as int8, a scale for each run of kActivationGroup.
#pragma once

#include "kernels/cpu/linear_impl.h"

namespace vivarium::kernels {
namespace {

constexpr int64_t kGroupFours = kActivationGroup / 4;

// acc += weights (unsigned) * x (signed), in fours. As assembly, since g++ 12 copies the
// accumulator before the instruction of its intrinsic and so spills a tile of 24 (three times
// slower).
inline void MultiplyFours(__m512i& acc, __m512i weights, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(x));
}

template <int kRows, int kVectors>
struct FoursTile {
  static void Run(const LinearPanel& panel, int64_t row) {
    const auto* w = static_cast<const unsigned char*>(panel.weight);
    const auto* x = static_cast<const int8_t*>(panel.x) + row * panel.x_stride;
    const float* scales = panel.x_scales + row * panel.num_groups;
    const int32_t* offsets = panel.x_offsets + row * panel.num_groups;
    Vec total[kRows][kVectors];  // beside the accumulators there is no register left for it
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) total[r][v] = Set(0.0f);
    }
    for (int64_t group = 0; group < panel.num_groups; ++group) {
      __m512i acc[kRows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          acc[r][v] = _mm512_set1_epi32(offsets[r * panel.num_groups + group]);
        }
      }
      const int64_t begin = group * kGroupFours;
      const int64_t end = begin + kGroupFours < panel.depth ? begin + kGroupFours : panel.depth;
      for (int64_t k = begin; k < end; ++k) {
        __m512i fours[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) fours[v] = _mm512_loadu_si512(w + v * 4 * kLanes);
        if (kRows >= kMinPrefetchRows && row == 0) PrefetchAhead<kVectors * 4 * kLanes>(w);
        w += kVectors * 4 * kLanes;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          int32_t four;
          __builtin_memcpy(&four, x + r * panel.x_stride + 4 * k, sizeof(four));
          const __m512i value = _mm512_set1_epi32(four);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            MultiplyFours(acc[r][v], fours[v], value);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec scale = Set(scales[r * panel.num_groups + group]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          total[r][v] = MulAdd(Vec{_mm512_cvtepi32_ps(acc[r][v])}, scale, total[r][v]);
        }
      }
    }
    StoreTile<kRows, kVectors>(total, panel, row);
  }
};

void LinearInt8(const LinearPanel& panel) { RunPanel<FoursTile>(panel); }

// One group: src[0..count) as int8; returns the sum.
inline int32_t QuantizeGroup(const float* src, int count, float inverse_scale, int8_t* dst) {
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < count; i += kLanes) {
    const int left = count - i < kLanes ? count - i : kLanes;
    const __mmask16 lanes = FirstLanes(left);
    const __m512i value =
        _mm512_cvt_roundps_epi32(Mul(LoadPartial(src + i, left), Set(inverse_scale)).v,
                                 _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // NaN and infinity become the most negative integer; their group's scale says so.
    const __m128i bytes = _mm512_cvtsepi32_epi8(value);
    _mm_mask_storeu_epi8(dst + i, lanes, bytes);
    sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(bytes));
  }
  return _mm512_reduce_add_epi32(sum);
}

void QuantizeRow(const float* src, int64_t count, int8_t* dst, int64_t padded_count, float* scales,
                 int32_t* offsets) {
  constexpr float kLargest = 127.0f;
  constexpr float kSmallestScale = 1e-37f;  // below, a quotient could overflow: the group is zero
  for (int64_t begin = 0, group = 0; begin < count; begin += kActivationGroup, ++group) {
    const int size =
        static_cast<int>(count - begin < kActivationGroup ? count - begin : kActivationGroup);
    Vec largest = Set(0.0f);
    Vec poison = Set(0.0f);  // 0, or NaN when the group holds NaN or infinity
    for (int i = 0; i < size; i += kLanes) {
      const Vec value = LoadPartial(src + begin + i, size - i < kLanes ? size - i : kLanes);
      largest = Max(largest, Abs(value));
      poison = MulAdd(value, Set(0.0f), poison);
    }
    const float scale = _mm512_reduce_max_ps(largest.v) / kLargest;
    const float inverse_scale = scale < kSmallestScale ? 0.0f : 1.0f / scale;
    scales[group] = scale + ReduceAdd(poison);
    offsets[group] = -128 * QuantizeGroup(src + begin, size, inverse_scale, dst + begin);
  }
  for (int64_t i = count; i < padded_count; ++i) dst[i] = 0;
}

}  // namespace
}  // namespace vivarium::kernels
