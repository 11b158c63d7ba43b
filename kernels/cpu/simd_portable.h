// Sixteen f32 lanes in plain C++: the reference for what simd_avx2.h and simd_avx512.h offer under
// the same names, and the path for every other processor.
//
// Included by exactly one translation unit (isa_portable.cc). Everything is in an anonymous
// namespace, so no code compiled for one instruction set can be linked in for another.
#pragma once

#include <cstdint>
#include <cstring>

namespace vivarium::kernels {
namespace {

constexpr int kLanes = 16;
// Shape of the matrix product's register tile: rows x vectors of 16 columns.
constexpr int kMaxTileRows = 4;
constexpr int kPanelVectors = 1;

struct Vec {
  float lane[kLanes];
};

#define VIVARIUM_LANEWISE(expression)                             \
  Vec result;                                                     \
  for (int i = 0; i < kLanes; ++i) result.lane[i] = (expression); \
  return result

inline Vec Set(float value) { VIVARIUM_LANEWISE(value); }
inline Vec Load(const float* p) { VIVARIUM_LANEWISE(p[i]); }
inline void Store(float* p, Vec v) { std::memcpy(p, v.lane, sizeof(v.lane)); }
// The first `count` lanes (0 .. 16), the others zero; touches no memory beyond them.
inline Vec LoadPartial(const float* p, int count) {
  if (count == kLanes) return Load(p);
  VIVARIUM_LANEWISE(i < count ? p[i] : 0.0f);
}
inline void StorePartial(float* p, Vec v, int count) {
  if (count == kLanes) return Store(p, v);
  for (int i = 0; i < count; ++i) p[i] = v.lane[i];
}
inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t BitsFromFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
// Sixteen bf16, widened.
inline Vec LoadBF16(const uint16_t* p) {
  VIVARIUM_LANEWISE(FloatFromBits(static_cast<uint32_t>(p[i]) << 16));
}
// Sixteen bf16, rounded to nearest even; NaN stays NaN.
inline void StoreBF16(uint16_t* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = BitsFromFloat(v.lane[i]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    p[i] = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded >> 16);
  }
}

// Sixteen int8, widened.
inline Vec LoadInt8(const int8_t* p) { VIVARIUM_LANEWISE(static_cast<float>(p[i])); }

inline Vec Add(Vec a, Vec b) { VIVARIUM_LANEWISE(a.lane[i] + b.lane[i]); }
inline Vec Sub(Vec a, Vec b) { VIVARIUM_LANEWISE(a.lane[i] - b.lane[i]); }
inline Vec Mul(Vec a, Vec b) { VIVARIUM_LANEWISE(a.lane[i] * b.lane[i]); }
inline Vec Div(Vec a, Vec b) { VIVARIUM_LANEWISE(a.lane[i] / b.lane[i]); }
// a * b + c: two roundings here, one where the instruction set has fused multiply-add.
inline Vec MulAdd(Vec a, Vec b, Vec c) { VIVARIUM_LANEWISE(a.lane[i] * b.lane[i] + c.lane[i]); }
// Like the instructions: when either is NaN, the result is b.
inline Vec Max(Vec a, Vec b) { VIVARIUM_LANEWISE(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
inline Vec Min(Vec a, Vec b) { VIVARIUM_LANEWISE(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
inline Vec Abs(Vec a) { VIVARIUM_LANEWISE(FloatFromBits(BitsFromFloat(a.lane[i]) & 0x7fffffffu)); }

// Nearest integer, ties to even, for |a| < 2^22.
inline Vec Round(Vec a) {
  constexpr float kMagic = 0x1.8p23f;
  VIVARIUM_LANEWISE((a.lane[i] + kMagic) - kMagic);
}
// t as a whole number (to nearest) and a fraction in [-0.5, 0.5], for 2^t = 2^fraction * 2^whole;
// t beyond the range of exponents goes to where 2^t is 0 or infinity. NaN: the fraction is NaN.
struct ExponentSplit {
  Vec whole, fraction;
};
inline ExponentSplit SplitExponent(Vec t) {
  t = Min(Set(129.0f), Max(Set(-151.0f), t));
  const Vec whole = Round(t);
  return {whole, Sub(t, whole)};
}
// p * 2^n for an integral n in [-256, 256]: exact but for the last rounding of a subnormal result.
inline Vec Scale(Vec p, Vec n) {
  constexpr float kMagic = 0x1.8p23f;
  Vec result;
  for (int i = 0; i < kLanes; ++i) {
    // n + 2^23 * 1.5 holds n in its low mantissa bits.
    const auto exponent =
        static_cast<int32_t>(BitsFromFloat(n.lane[i] + kMagic) - BitsFromFloat(kMagic));
    const int32_t half = exponent >> 1;
    const float first = FloatFromBits(static_cast<uint32_t>(half + 127) << 23);
    const float second = FloatFromBits(static_cast<uint32_t>(exponent - half + 127) << 23);
    result.lane[i] = p.lane[i] * first * second;
  }
  return result;
}

// Sum of the lanes by halves: lane i + lane i+8, then i+4, i+2, i+1.
inline float ReduceAdd(Vec v) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
  }
  return v.lane[0];
}
inline float SquareRoot(float value) { return __builtin_sqrtf(value); }

#undef VIVARIUM_LANEWISE

}  // namespace
}  // namespace vivarium::kernels
