#include "kernels/dtype.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace vivarium::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(DTypeName(DType::kF32), "f32");
  EXPECT_EQ(DTypeName(DType::kBF16), "bf16");
  EXPECT_EQ(DTypeName(DType::kF16), "f16");
  EXPECT_EQ(DTypeBytes(DType::kF32), 4u);
  EXPECT_EQ(DTypeBytes(DType::kBF16), 2u);
  EXPECT_EQ(DTypeBytes(DType::kF16), 2u);
}

TEST(DType, EveryF16) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float found = F16ToF32(static_cast<uint16_t>(bits));
    const int exponent = static_cast<int>((bits >> 10) & 0x1f);
    const int mantissa = static_cast<int>(bits & 0x3ff);
    const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(found)) << bits;
      continue;
    }
    float expected = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                   : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    if (exponent == 31) expected = kInfinity;
    ASSERT_EQ(found, sign * expected) << bits;
    ASSERT_EQ(std::signbit(found), (bits & 0x8000) != 0) << bits;
  }
}

TEST(DType, EveryBF16RoundTrips) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = BF16ToF32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(value)))) << bits;
    } else {
      ASSERT_EQ(F32ToBF16(value), bits);
    }
  }
}

TEST(DType, BF16RoundsToNearestEven) {
  EXPECT_EQ(F32ToBF16(FromBits(0x3f808000)), 0x3f80);  // half way, down to even
  EXPECT_EQ(F32ToBF16(FromBits(0x3f818000)), 0x3f82);  // half way, up to even
  EXPECT_EQ(F32ToBF16(FromBits(0x3f808001)), 0x3f81);  // above half
  EXPECT_EQ(F32ToBF16(FromBits(0x3f80ffff)), 0x3f81);
  EXPECT_EQ(F32ToBF16(FromBits(0x7f7fffff)), 0x7f80);  // overflow to infinity
  EXPECT_EQ(F32ToBF16(FromBits(0xff7fffff)), 0xff80);
  EXPECT_EQ(F32ToBF16(-0.0f), 0x8000);
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(FromBits(0x7f800001)))));  // not infinity
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(FromBits(0xffffffff)))));
}

TEST(DType, ConvertsUnalignedArrays) {
  const std::vector<float> f32 = {1.0f, -2.5f, 0.0f};
  std::vector<unsigned char> bytes(1 + sizeof(float) * 3);
  std::memcpy(bytes.data() + 1, f32.data(), sizeof(float) * 3);
  std::vector<float> out(3);
  ConvertToF32(bytes.data() + 1, DType::kF32, 3, out.data());
  EXPECT_EQ(out, f32);

  const uint16_t bf16[] = {0x3f80, 0xc020, 0x0000};
  std::memcpy(bytes.data() + 1, bf16, sizeof(bf16));
  ConvertToF32(bytes.data() + 1, DType::kBF16, 3, out.data());
  EXPECT_EQ(out, f32);

  const uint16_t f16[] = {0x3c00, 0xc100, 0x0000};
  std::memcpy(bytes.data() + 1, f16, sizeof(f16));
  ConvertToF32(bytes.data() + 1, DType::kF16, 3, out.data());
  EXPECT_EQ(out, f32);

  ConvertToF32(nullptr, DType::kF32, 0, nullptr);  // nothing to do
}

}  // namespace
}  // namespace vivarium::kernels
