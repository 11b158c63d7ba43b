// Sixteen orders and weights of logits on AVX2; names and meaning: sampling_lanes_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/sampling_math.h"

namespace vivarium::kernels {
namespace {

struct Orders {
  __m256i lo, hi;
};
struct Weights {
  __m256i quarter[4];  // lanes 0 .. 3, 4 .. 7, ...; 64 bits each
};

inline uint32_t LanesOf(__m256 lo, __m256 hi) {
  return static_cast<uint32_t>(_mm256_movemask_ps(lo)) |
         static_cast<uint32_t>(_mm256_movemask_ps(hi)) << 8;
}
inline uint32_t LanesEqual(Vec v, float value) {
  const __m256 wanted = _mm256_set1_ps(value);
  return LanesOf(_mm256_cmp_ps(v.lo, wanted, _CMP_EQ_OQ), _mm256_cmp_ps(v.hi, wanted, _CMP_EQ_OQ));
}
inline uint32_t LanesNotBelow(Vec v, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  return LanesOf(_mm256_cmp_ps(v.lo, bound, _CMP_NLT_UQ), _mm256_cmp_ps(v.hi, bound, _CMP_NLT_UQ));
}

inline __m256i OrdersOfHalf(__m256 logits) {
  const __m256i bits = _mm256_castps_si256(_mm256_add_ps(logits, _mm256_setzero_ps()));
  const __m256i sign = _mm256_srai_epi32(bits, 31);
  return _mm256_xor_si256(bits, _mm256_or_si256(sign, _mm256_set1_epi32(INT32_MIN)));
}
inline Orders OrdersOf(Vec logits) { return {OrdersOfHalf(logits.lo), OrdersOfHalf(logits.hi)}; }
// All ones where low <= order <= high, all unsigned.
inline __m256 WithinHalf(__m256i orders, __m256i low, __m256i high) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_cmpeq_epi32(_mm256_max_epu32(orders, low), orders),
                       _mm256_cmpeq_epi32(_mm256_min_epu32(orders, high), orders)));
}
inline uint32_t LanesWithin(const Orders& orders, uint32_t low, uint32_t high) {
  const __m256i lows = _mm256_set1_epi32(static_cast<int32_t>(low));
  const __m256i highs = _mm256_set1_epi32(static_cast<int32_t>(high));
  return LanesOf(WithinHalf(orders.lo, lows, highs), WithinHalf(orders.hi, lows, highs));
}
inline void StoreBins(const Orders& orders, uint32_t high, int32_t shift, uint32_t* bins) {
  const __m256i highs = _mm256_set1_epi32(static_cast<int32_t>(high));
  const __m128i count = _mm_cvtsi32_si128(shift);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bins),
                      _mm256_srl_epi32(_mm256_sub_epi32(highs, orders.lo), count));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bins + 8),
                      _mm256_srl_epi32(_mm256_sub_epi32(highs, orders.hi), count));
}

inline Weights NoWeights() {
  const __m256i zero = _mm256_setzero_si256();
  return {{zero, zero, zero, zero}};
}
inline void WeightsOfHalf(__m256 z, __m256i* quarters) {
  // Below -43 the shift takes all bits; the bound keeps the conversion in range.
  const __m256 bounded = _mm256_max_ps(z, _mm256_set1_ps(-60.0f));
  const __m256 floor = _mm256_floor_ps(bounded);
  const __m256 f = _mm256_sub_ps(bounded, floor);
  constexpr float kCoefficients[] = {VIVARIUM_WEIGHT_POLYNOMIAL};
  __m256 p = _mm256_set1_ps(kCoefficients[0]);
  for (int i = 1; i < 7; ++i) {
    p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(kCoefficients[i]));
  }
  const __m256i bits =
      _mm256_min_epi32(_mm256_castps_si256(p), _mm256_set1_epi32(0x3fffffff));  // below 2
  const __m256i mantissa = _mm256_or_si256(
      _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int32_t>(kFloatImplicitOne - 1))),
      _mm256_set1_epi32(static_cast<int32_t>(kFloatImplicitOne)));
  const __m256i shift = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_cvttps_epi32(floor));
  const auto quarter = [](__m128i mantissas, __m128i shifts) {
    return _mm256_srlv_epi64(
        _mm256_slli_epi64(_mm256_cvtepu32_epi64(mantissas), kWeightFractionBits - 23),
        _mm256_cvtepu32_epi64(shifts));
  };
  quarters[0] = quarter(_mm256_castsi256_si128(mantissa), _mm256_castsi256_si128(shift));
  quarters[1] = quarter(_mm256_extracti128_si256(mantissa, 1), _mm256_extracti128_si256(shift, 1));
}
inline Weights WeightsOf(Vec z) {
  Weights weights;
  WeightsOfHalf(z.lo, weights.quarter);
  WeightsOfHalf(z.hi, weights.quarter + 2);
  return weights;
}
inline Weights AddWeights(Weights sum, const Weights& weights, uint32_t lanes,
                          uint64_t min_weight) {
  const __m256i below = _mm256_set1_epi64x(static_cast<int64_t>(min_weight) - 1);
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  for (int i = 0; i < 4; ++i) {
    const __m256i four = _mm256_set1_epi64x(static_cast<int64_t>(lanes >> (4 * i)));
    const __m256i chosen = _mm256_and_si256(_mm256_cmpeq_epi64(_mm256_and_si256(four, bit), bit),
                                            _mm256_cmpgt_epi64(weights.quarter[i], below));
    sum.quarter[i] = _mm256_add_epi64(sum.quarter[i], _mm256_and_si256(chosen, weights.quarter[i]));
  }
  return sum;
}
inline uint64_t TotalOf(const Weights& weights) {
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes),
                     _mm256_add_epi64(_mm256_add_epi64(weights.quarter[0], weights.quarter[1]),
                                      _mm256_add_epi64(weights.quarter[2], weights.quarter[3])));
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}
inline void StoreWeights(const Weights& weights, uint64_t* out) {
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 4 * i), weights.quarter[i]);
  }
}

}  // namespace
}  // namespace vivarium::kernels
