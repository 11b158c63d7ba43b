// Sixteen f32 lanes as two 256-bit registers (AVX2 + FMA). Names and meaning: simd_portable.h.
// Included by exactly one translation unit (isa_avx2.cc), the only one compiled with -mavx2 -mfma.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vivarium::kernels {
namespace {

constexpr int kLanes = 16;
constexpr int kMaxTileRows = 6;  // 6 rows x 1 vector = 12 of 16 registers
constexpr int kPanelVectors = 1;

struct Vec {
  __m256 lo, hi;
};

inline Vec Set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// All ones in the first `count` (of 8; may be negative or above 8) lanes.
inline __m256i FirstLanes(int count) {
  const __m256i lane_index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane_index);
}
inline Vec LoadPartial(const float* p, int count) {
  if (count == kLanes) return Load(p);
  return {_mm256_maskload_ps(p, FirstLanes(count)),
          _mm256_maskload_ps(p + 8, FirstLanes(count - 8))};
}
inline void Store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline void StorePartial(float* p, Vec v, int count) {
  if (count == kLanes) return Store(p, v);
  _mm256_maskstore_ps(p, FirstLanes(count), v.lo);
  _mm256_maskstore_ps(p + 8, FirstLanes(count - 8), v.hi);
}
inline __m256 WidenBF16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec LoadBF16(const uint16_t* p) {
  return {WidenBF16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          WidenBF16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
// In the low half of each lane.
inline __m256i RoundToBF16Half(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i bias =
      _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), is_nan);
}
inline void StoreBF16(uint16_t* p, Vec v) {
  const __m256i mixed = _mm256_packus_epi32(RoundToBF16Half(v.lo), RoundToBF16Half(v.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}

inline __m256 WidenInt8(const int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Vec LoadInt8(const int8_t* p) { return {WidenInt8(p), WidenInt8(p + 8)}; }

inline Vec Add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec Sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec Div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec MulAdd(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec Min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec Abs(Vec a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}

inline __m256 RoundHalf(__m256 a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec Round(Vec a) { return {RoundHalf(a.lo), RoundHalf(a.hi)}; }
struct ExponentSplit {
  Vec whole, fraction;
};
inline ExponentSplit SplitExponent(Vec t) {
  t = Min(Set(129.0f), Max(Set(-151.0f), t));
  const Vec whole = Round(t);
  return {whole, Sub(t, whole)};
}
inline __m256 ScaleHalf(__m256 p, __m256 n) {
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i rest = _mm256_sub_epi32(exponent, half);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
inline Vec Scale(Vec p, Vec n) { return {ScaleHalf(p.lo, n.lo), ScaleHalf(p.hi, n.hi)}; }

inline float ReduceAdd(Vec v) {
  const __m256 by8 = _mm256_add_ps(v.lo, v.hi);
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_shuffle_ps(by2, by2, 1)));
}
inline float SquareRoot(float value) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value))); }

}  // namespace
}  // namespace vivarium::kernels
