// Sixteen orders and weights of logits on AVX-512; names and meaning: sampling_lanes_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/sampling_math.h"

namespace vivarium::kernels {
namespace {

struct Orders {
  __m512i v;
};
struct Weights {
  __m512i lo, hi;  // lanes 0 .. 7 and 8 .. 15, 64 bits each
};

inline uint32_t LanesEqual(Vec v, float value) {
  return _mm512_cmp_ps_mask(v.v, _mm512_set1_ps(value), _CMP_EQ_OQ);
}
inline uint32_t LanesNotBelow(Vec v, float limit) {
  return _mm512_cmp_ps_mask(v.v, _mm512_set1_ps(limit), _CMP_NLT_UQ);
}

inline Orders OrdersOf(Vec logits) {
  const __m512i bits = _mm512_castps_si512(_mm512_add_ps(logits.v, _mm512_setzero_ps()));
  const __m512i sign = _mm512_srai_epi32(bits, 31);
  return {_mm512_xor_si512(bits, _mm512_or_si512(sign, _mm512_set1_epi32(INT32_MIN)))};
}
inline uint32_t LanesWithin(const Orders& orders, uint32_t low, uint32_t high) {
  const __mmask16 not_low =
      _mm512_cmpge_epu32_mask(orders.v, _mm512_set1_epi32(static_cast<int32_t>(low)));
  return _mm512_mask_cmple_epu32_mask(not_low, orders.v,
                                      _mm512_set1_epi32(static_cast<int32_t>(high)));
}
inline void StoreBins(const Orders& orders, uint32_t high, int32_t shift, uint32_t* bins) {
  const __m512i below = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int32_t>(high)), orders.v);
  _mm512_storeu_si512(bins, _mm512_srl_epi32(below, _mm_cvtsi32_si128(shift)));
}

inline Weights NoWeights() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline Weights WeightsOf(Vec z) {
  // Below -43 the shift takes all bits; the bound keeps the conversion in range.
  const __m512 bounded = _mm512_max_ps(z.v, _mm512_set1_ps(-60.0f));
  const __m512 floor = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(bounded, floor);
  constexpr float kCoefficients[] = {VIVARIUM_WEIGHT_POLYNOMIAL};
  __m512 p = _mm512_set1_ps(kCoefficients[0]);
  for (int i = 1; i < 7; ++i) {
    p = _mm512_add_ps(_mm512_mul_ps(p, f), _mm512_set1_ps(kCoefficients[i]));
  }
  const __m512i bits =
      _mm512_min_epi32(_mm512_castps_si512(p), _mm512_set1_epi32(0x3fffffff));  // below 2
  const __m512i mantissa = _mm512_or_si512(
      _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int32_t>(kFloatImplicitOne - 1))),
      _mm512_set1_epi32(static_cast<int32_t>(kFloatImplicitOne)));
  const __m512i shift = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_cvttps_epi32(floor));
  const auto half = [](__m256i mantissas, __m256i shifts) {
    return _mm512_srlv_epi64(
        _mm512_slli_epi64(_mm512_cvtepu32_epi64(mantissas), kWeightFractionBits - 23),
        _mm512_cvtepu32_epi64(shifts));
  };
  return {half(_mm512_castsi512_si256(mantissa), _mm512_castsi512_si256(shift)),
          half(_mm512_extracti64x4_epi64(mantissa, 1), _mm512_extracti64x4_epi64(shift, 1))};
}
inline Weights AddWeights(Weights sum, const Weights& weights, uint32_t lanes,
                          uint64_t min_weight) {
  const __m512i least = _mm512_set1_epi64(static_cast<int64_t>(min_weight));
  const __mmask8 lo = _mm512_mask_cmpge_epi64_mask(static_cast<__mmask8>(lanes), weights.lo, least);
  const __mmask8 hi =
      _mm512_mask_cmpge_epi64_mask(static_cast<__mmask8>(lanes >> 8), weights.hi, least);
  return {_mm512_mask_add_epi64(sum.lo, lo, sum.lo, weights.lo),
          _mm512_mask_add_epi64(sum.hi, hi, sum.hi, weights.hi)};
}
inline uint64_t TotalOf(const Weights& weights) {
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(weights.lo, weights.hi));
  uint64_t total = 0;
  for (const uint64_t lane : lanes) total += lane;
  return total;
}
inline void StoreWeights(const Weights& weights, uint64_t* out) {
  _mm512_storeu_si512(out, weights.lo);
  _mm512_storeu_si512(out + 8, weights.hi);
}

}  // namespace
}  // namespace vivarium::kernels
