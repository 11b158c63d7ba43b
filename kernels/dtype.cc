#include "kernels/dtype.h"

#include <cstring>

namespace vivarium::kernels {
namespace {

float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t BitsFromFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

}  // namespace

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI8:
      return "int8";
  }
  return "unknown";
}

float BF16ToF32(uint16_t bits) { return FloatFromBits(static_cast<uint32_t>(bits) << 16); }

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) {
    return FloatFromBits(sign | 0x7f800000u | (mantissa << 13));  // infinity or NaN
  }
  if (exponent != 0) {
    return FloatFromBits(sign | ((exponent + 127 - 15) << 23) | (mantissa << 13));
  }
  // Zero or subnormal: mantissa * 2^-24, exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return FloatFromBits(sign | BitsFromFloat(magnitude));
}

uint16_t F32ToBF16(float value) {
  const uint32_t bits = BitsFromFloat(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) |
                                 0x0040u);  // quiet NaN: truncation must not make it infinity
  }
  const uint32_t round_half_to_even = 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>((bits + round_half_to_even) >> 16);
}

void ConvertToF32(const void* src, DType from, size_t count, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  if (from == DType::kF32) {
    if (count != 0) std::memcpy(dst, bytes, count * sizeof(float));
    return;
  }
  if (from == DType::kI8) {
    for (size_t i = 0; i < count; ++i) dst[i] = static_cast<float>(static_cast<int8_t>(bytes[i]));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + i * sizeof(bits), sizeof(bits));
    dst[i] = from == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits);
  }
}

}  // namespace vivarium::kernels
