#include "engine/runtime/state_convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

namespace vivarium::engine {
namespace {

using kernels::DType;
using ::testing::HasSubstr;

// conv [3, 5] f32, ssm [1, 2, 16].
StateLayout Layout(DType ssm_dtype) {
  const uint64_t ssm_bytes = 32 * kernels::DTypeBytes(ssm_dtype);
  StateLayout layout;
  layout.slot_bytes = 64 + ssm_bytes;
  layout.parts = {{"layers.0.conv", DType::kF32, {3, 5}, 0, 60},
                  {"layers.0.ssm", ssm_dtype, {1, 2, 16}, 64, ssm_bytes}};
  return layout;
}

std::vector<float> Values() {
  std::vector<float> values(15 + 32);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.1f * static_cast<float>(i) - 1.7f;
  return values;
}

StateBuffer F32State(const std::vector<float>& values) {
  StateBuffer state(Layout(DType::kF32).slot_bytes);
  std::memcpy(state.data(), values.data(), 60);
  std::memcpy(state.data() + 64, values.data() + 15, 128);
  return state;
}

TEST(ConvertState, RoundsAndWidens) {
  const StateBuffer wide = F32State(Values());
  const auto narrow = ConvertState(Layout(DType::kF32), wide, Layout(DType::kBF16));
  ASSERT_TRUE(narrow.ok()) << narrow.status();
  ASSERT_EQ(narrow->size(), 128u);
  EXPECT_EQ(std::memcmp(narrow->data(), wide.data(), 64), 0) << "the window and the padding";
  const auto* bits = reinterpret_cast<const uint16_t*>(narrow->data() + 64);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(bits[i], kernels::F32ToBF16(Values()[15 + i]));
  const auto again = ConvertState(Layout(DType::kBF16), *narrow, Layout(DType::kF32));
  ASSERT_TRUE(again.ok()) << again.status();
  std::vector<float> rounded = Values();
  for (size_t i = 15; i < rounded.size(); ++i) {
    rounded[i] = kernels::BF16ToF32(kernels::F32ToBF16(rounded[i]));
  }
  const StateBuffer expected = F32State(rounded);
  ASSERT_EQ(again->size(), expected.size());
  EXPECT_EQ(std::memcmp(again->data(), expected.data(), expected.size()), 0);
}

TEST(ConvertState, OtherDifferencesAreRefused) {
  const StateBuffer state = F32State(Values());
  StateLayout other = Layout(DType::kBF16);
  other.parts[1].shape = {1, 4, 8};
  EXPECT_FALSE(AreConvertible(Layout(DType::kF32), other));
  const auto status = ConvertState(Layout(DType::kF32), state, other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("192 bytes, f32"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("128 bytes, bf16"));
  other = Layout(DType::kBF16);
  other.parts[0].name = "layers.1.conv";
  EXPECT_FALSE(AreConvertible(Layout(DType::kF32), other));
  other = Layout(DType::kBF16);
  other.parts.pop_back();
  EXPECT_FALSE(AreConvertible(Layout(DType::kF32), other));
  EXPECT_FALSE(AreConvertible(Layout(DType::kF32), Layout(DType::kF16)));
  EXPECT_TRUE(AreConvertible(Layout(DType::kF32), Layout(DType::kF32)));
}

TEST(ConvertState, AValueThatBF16CannotHoldIsRefused) {
  std::vector<float> values = Values();
  values[20] = std::numeric_limits<float>::max();
  const auto status =
      ConvertState(Layout(DType::kF32), F32State(values), Layout(DType::kBF16)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layers.0.ssm, element 5"));
}

}  // namespace
}  // namespace vivarium::engine
