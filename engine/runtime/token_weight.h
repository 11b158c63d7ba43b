// The weight of a token: a power of two as a 64-bit fixed-point number.
//
// Softmax needs an exponential and a sum, and both are where backends and libraries differ in the
// last bit. Here the exponential is spelled out in IEEE single-precision additions and products (no
// contraction, no library call) and the sum is one of integers, which has no order. So the same
// logits give the same weights, the same sum and the same token everywhere.
#pragma once

#include <bit>
#include <cstdint>

namespace vivarium::engine {

// Weights are multiples of 2^-42. The largest logit weighs exactly 2^42, so up to 2^21 ids sum to
// at most 2^63.
inline constexpr int kWeightFractionBits = 42;
inline constexpr uint64_t kWeightOne = uint64_t{1} << kWeightFractionBits;
inline constexpr int64_t kMaxWeightedIds = int64_t{1} << 21;
inline constexpr float kLog2E = 1.44269504f;

// 2^z in units of 2^-42, rounded down, for z <= 0 (-infinity included); relative error below 1.1e-7
// plus the rounding. Exactly kWeightOne at 0, below it elsewhere, and never rising as z falls.
inline uint64_t TokenWeight(float z) {
  if (!(z > -static_cast<float>(kWeightFractionBits + 1))) return 0;
  int32_t whole = static_cast<int32_t>(z);
  whole -= z < static_cast<float>(whole);         // floor
  const float f = z - static_cast<float>(whole);  // [0, 1]: 1 only by rounding
  // Minimax polynomial of degree 6 for 2^f on [0, 1], 1 at 0; relative error 2.1e-9.
  float p = 0.000216129149f;
  p = p * f + 0.0012467847f;
  p = p * f + 0.00967545155f;
  p = p * f + 0.0554852821f;
  p = p * f + 0.240229309f;
  p = p * f + 0.693147063f;
  p = p * f + 1.0f;
  constexpr uint32_t kImplicitOne = 1u << 23;
  const uint32_t mantissa = p < 2.0f
                                ? (std::bit_cast<uint32_t>(p) & (kImplicitOne - 1)) | kImplicitOne
                                : 2 * kImplicitOne - 1;
  return (uint64_t{mantissa} << (kWeightFractionBits - 23)) >> -whole;
}

}  // namespace vivarium::engine
