// Element types of tensors, and their conversions on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vivarium::kernels {

enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3 };

constexpr size_t DTypeBytes(DType dtype) {
  if (dtype == DType::kI8) return 1;
  return dtype == DType::kF32 ? 4 : 2;
}
// "f32", "bf16", "f16", "int8".
std::string_view DTypeName(DType dtype);

// Exact widening; bf16 and f16 as their 16 bits.
float BF16ToF32(uint16_t bits);
float F16ToF32(uint16_t bits);
// Round to nearest even; NaN stays NaN, overflow goes to infinity.
uint16_t F32ToBF16(float value);

// Widens `count` elements of `src` (dtype `from`, any alignment) into `dst`; kI8: the integers.
void ConvertToF32(const void* src, DType from, size_t count, float* dst);

}  // namespace vivarium::kernels
