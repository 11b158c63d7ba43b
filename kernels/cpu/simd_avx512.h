// Sixteen f32 lanes as one 512-bit register (AVX-512 F/BW/VL/DQ + BF16). Names and meaning:
// simd_portable.h. Included by exactly one translation unit (isa_avx512.cc), the only one compiled
// with -mavx512*.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vivarium::kernels {
namespace {

constexpr int kLanes = 16;
constexpr int kMaxTileRows = 6;  // 6 rows x 4 vectors = 24 of 32 registers
constexpr int kPanelVectors = 4;

struct Vec {
  __m512 v;
};

// The first `count` lanes, 0 <= count <= 16.
inline __mmask16 FirstLanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

inline Vec Set(float value) { return {_mm512_set1_ps(value)}; }
inline Vec Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec LoadPartial(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(FirstLanes(count), p)};
}
inline void Store(float* p, Vec v) { _mm512_storeu_ps(p, v.v); }
inline void StorePartial(float* p, Vec v, int count) {
  if (count == kLanes) return Store(p, v);
  _mm512_mask_storeu_ps(p, FirstLanes(count), v.v);
}
inline Vec LoadBF16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
// Subnormals become zero (vcvtneps2bf16).
inline void StoreBF16(uint16_t* p, Vec v) {
  const __m256bh bits = _mm512_cvtneps_pbh(v.v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

inline Vec Add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec Sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec Div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec Min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec Abs(Vec a) { return {_mm512_abs_ps(a.v)}; }

inline Vec Round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
struct ExponentSplit {
  Vec whole, fraction;
};
// vscalefps saturates, so only an infinite t needs care: clamped below, since what overflows is an
// error of its own. (vreduceps would give the fraction in one instruction, at a third of the rate.)
inline ExponentSplit SplitExponent(Vec t) {
  t = Max(Set(-160.0f), t);
  const Vec whole = Round(t);
  return {whole, Sub(t, whole)};
}
inline Vec Scale(Vec p, Vec n) { return {_mm512_scalef_ps(p.v, n.v)}; }

inline float ReduceAdd(Vec v) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_shuffle_ps(by2, by2, 1)));
}
inline float SquareRoot(float value) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value))); }

}  // namespace
}  // namespace vivarium::kernels
