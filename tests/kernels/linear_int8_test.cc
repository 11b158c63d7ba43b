// Int8 weights: how they are made, and their products.
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "tests/kernels/expect_near.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::kernels {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct QuantizedMatrix {
  QuantizedMatrix(int64_t num_rows, int64_t num_cols, uint64_t seed)
      : rows(num_rows),
        cols(num_cols),
        q(static_cast<size_t>(rows * cols)),
        scales(static_cast<size_t>(rows)) {
    std::vector<float> w(q.size());
    RandomValues(seed).Fill(w.data(), rows * cols, 1.0f / std::sqrt(static_cast<float>(cols)));
    QuantizeRows(w.data(), DType::kF32, rows, cols, q.data(), scales.data());
  }
  std::vector<float> Values() const {
    std::vector<float> values(q.size());
    for (size_t i = 0; i < q.size(); ++i) {
      values[i] = static_cast<float>(q[i]) * scales[i / static_cast<size_t>(cols)];
    }
    return values;
  }
  int64_t rows, cols;
  std::vector<int8_t> q;
  std::vector<float> scales;
};

class LinearInt8Test : public IsaTest {
 protected:
  static void Run(Backend* backend, const float* x, int64_t x_stride, const PackedMatrix& weight,
                  const float* bias, GuardedArray* out, int64_t out_stride, int64_t num_tokens) {
    backend->Linear({x, x_stride, &weight, bias, out->data(), out_stride, num_tokens});
  }
  // Activations as the kernel sees them (ops.h): avx512 rounds runs of 128 to int8, cuda rounds to
  // bf16, the others take them as they are.
  std::vector<float> Seen(const GuardedArray& x, int64_t num_tokens, int64_t cols,
                          int64_t stride) const {
    constexpr int64_t kGroup = 128;
    std::vector<float> seen(x.data(), x.data() + x.size());
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t begin = 0; begin < cols; begin += kGroup) {
        float* group = seen.data() + t * stride + begin;
        const int64_t size = std::min(kGroup, cols - begin);
        float largest = 0.0f;
        for (int64_t i = 0; i < size; ++i) largest = std::max(largest, std::abs(group[i]));
        const float scale = largest / 127.0f;
        for (int64_t i = 0; i < size; ++i) {
          if (GetParam() == "avx512") {
            group[i] = scale == 0.0f ? 0.0f : std::nearbyint(group[i] * (1.0f / scale)) * scale;
          } else if (GetParam() != "avx2" && GetParam() != "portable") {
            group[i] = BF16ToF32(F32ToBF16(group[i]));
          }
        }
      }
    }
    return seen;
  }
  void CheckShape(int64_t num_tokens, int64_t rows, int64_t cols, bool with_bias) {
    const std::string what = std::to_string(num_tokens) + "x" + std::to_string(rows) + "x" +
                             std::to_string(cols) + (with_bias ? " bias" : "");
    SCOPED_TRACE(what);
    const std::unique_ptr<Backend> backend = MakeBackend(2);
    const QuantizedMatrix w(rows, cols, 1);
    const auto packed = backend->PackInt8(w.q.data(), w.scales.data(), rows, cols);
    ASSERT_NE(packed, nullptr);
    EXPECT_EQ(packed->rows(), rows);
    EXPECT_EQ(packed->cols(), cols);
    EXPECT_EQ(packed->dtype(), DType::kI8);
    EXPECT_GE(packed->bytes(), static_cast<size_t>(rows * (cols + 4)));
    const int64_t x_stride = cols + 5, out_stride = rows + 3;
    GuardedArray x(num_tokens * x_stride - 5), bias(rows), out(num_tokens * out_stride);
    RandomValues random(2);
    random.FillRows(x.data(), num_tokens, cols, x_stride);
    random.Fill(bias.data(), rows);
    Run(backend.get(), x.data(), x_stride, *packed, with_bias ? bias.data() : nullptr, &out,
        out_stride, num_tokens);
    const std::vector<float> seen = Seen(x, num_tokens, cols, x_stride);
    ExpectNear(out.data(), out_stride,
               ReferenceLinear(seen.data(), x_stride, w.Values().data(),
                               with_bias ? bias.data() : nullptr, num_tokens, rows, cols),
               num_tokens, rows, kTolerances.linear, "int8 linear " + what);
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t c = rows; c < out_stride; ++c) {
        ASSERT_TRUE(std::isnan(out[t * out_stride + c])) << "wrote past the row's columns";
      }
    }
  }
};

VIVARIUM_FOR_EACH_ISA(LinearInt8Test);

TEST_P(LinearInt8Test, MatchesReference) {
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 1, 3},     {2, 3, 4},     {1, 16, 7},
                               {3, 15, 127},  {5, 17, 128},  {6, 48, 129},  {7, 63, 65},
                               {1, 64, 256},  {4, 65, 31},   {13, 80, 300}, {25, 33, 17},
                               {70, 130, 47}, {2, 192, 385}, {1, 257, 513}};
  for (const auto& shape : shapes) {
    for (const bool with_bias : {false, true}) {
      CheckShape(shape[0], shape[1], shape[2], with_bias);
    }
  }
}

// More rows than are quantised at a time.
TEST_P(LinearInt8Test, MatchesReferenceOnManyRows) {
  for (const int64_t num_tokens : {509, 510, 511, 1021}) {
    if (kEmulated && num_tokens != 510) continue;
    CheckShape(kEmulated ? 129 : num_tokens, 20, 18, true);
  }
}

// A row's bits are the same alone and among others, on any number of threads.
TEST_P(LinearInt8Test, RowDoesNotDependOnBatch) {
  const int64_t rows = 150, cols = 201, max_tokens = 70;
  const QuantizedMatrix w(rows, cols, 3);
  const std::unique_ptr<Backend> backend = MakeBackend(1);
  const auto packed = backend->PackInt8(w.q.data(), w.scales.data(), rows, cols);
  GuardedArray x(max_tokens * cols), bias(rows), alone(max_tokens * rows);
  RandomValues(4).Fill(x.data(), x.size());
  RandomValues(5).Fill(bias.data(), rows);
  for (int64_t t = 0; t < max_tokens; ++t) {
    GuardedArray result(rows);
    Run(backend.get(), x.data() + t * cols, cols, *packed, bias.data(), &result, rows, 1);
    std::copy_n(result.data(), rows, alone.data() + t * rows);
  }
  for (const int threads : {1, 3}) {
    const std::unique_ptr<Backend> other = MakeBackend(threads);
    const auto other_packed = other->PackInt8(w.q.data(), w.scales.data(), rows, cols);
    for (int64_t num_tokens = 2; num_tokens <= max_tokens; num_tokens += kEmulated ? 17 : 1) {
      GuardedArray out(num_tokens * rows);
      Run(other.get(), x.data(), cols, *other_packed, bias.data(), &out, rows, num_tokens);
      ASSERT_TRUE(SameBits(out.data(), alone.data(), out.size())) << num_tokens << " rows";
    }
  }
}

// What is not finite spoils its own row, all of it, and no other; zeros and tiny values are fine.
TEST_P(LinearInt8Test, ExtremeActivations) {
  const int64_t rows = 40, cols = 150, num_tokens = 9;
  const QuantizedMatrix w(rows, cols, 6);
  const std::unique_ptr<Backend> backend = MakeBackend(1);
  const auto packed = backend->PackInt8(w.q.data(), w.scales.data(), rows, cols);
  GuardedArray x(num_tokens * cols), out(num_tokens * rows);
  RandomValues(7).Fill(x.data(), x.size());
  x[1 * cols + 3] = kNaN;
  x[3 * cols + 149] = kInfinity;
  x[5 * cols + 0] = -kInfinity;
  for (int64_t k = 0; k < cols; ++k) x[7 * cols + k] = k % 2 == 0 ? 0.0f : 1e-41f;
  Run(backend.get(), x.data(), cols, *packed, nullptr, &out, rows, num_tokens);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      if (t == 1 || t == 3 || t == 5) {
        ASSERT_FALSE(std::isfinite(out[t * rows + n])) << t;
      } else if (t == 7) {
        ASSERT_LT(std::abs(out[t * rows + n]), 1e-35f);
      } else {
        ASSERT_TRUE(std::isfinite(out[t * rows + n])) << t;
      }
    }
  }
}

TEST(QuantizeRowsTest, RoundsToNearestEvenOfTheRowsScale) {
  // 127 makes the scale 1: ties, both signs, the largest.
  const std::vector<float> w = {127.0f, 0.5f,  1.5f,  2.5f,   -0.5f, -1.5f, 126.5f, -127.0f,
                                0.0f,   0.25f, -0.5f, 0.125f, 0.0f,  0.0f,  0.0f,   0.0f};
  std::vector<int8_t> q(w.size());
  std::vector<float> scales(2);
  QuantizeRows(w.data(), DType::kF32, 2, 8, q.data(), scales.data());
  EXPECT_EQ(std::vector<int8_t>(q.begin(), q.begin() + 8),
            (std::vector<int8_t>{127, 0, 2, 2, 0, -2, 126, -127}));
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(scales[1], 0.5f / 127);
  EXPECT_EQ(q[10], -127);
}

TEST(QuantizeRowsTest, OddRows) {
  const std::vector<float> w = {kNaN,    1.0f,  0.0f,   0.0f, 1e-40f,
                                -1e-40f, 3e38f, -1e38f, 1.0f, kInfinity};
  std::vector<int8_t> q(w.size());
  std::vector<float> scales(5);
  QuantizeRows(w.data(), DType::kF32, 5, 2, q.data(), scales.data());
  EXPECT_TRUE(std::isnan(scales[0]));
  EXPECT_EQ(scales[1], 0.0f);
  EXPECT_EQ(scales[2], 0.0f);
  EXPECT_EQ(q[6], 127);
  EXPECT_EQ(q[7], -42);
  EXPECT_TRUE(std::isnan(scales[4]));
}

// From any file dtype the same as from the widened values, and within half a scale of them.
TEST(QuantizeRowsTest, EveryDType) {
  const int64_t rows = 5, cols = 33;
  RandomValues random(8);
  for (const DType from : {DType::kBF16, DType::kF16}) {
    std::vector<uint16_t> bits(static_cast<size_t>(rows * cols));
    for (uint16_t& b : bits) {
      b = static_cast<uint16_t>(from == DType::kBF16 ? 0x3f00 + random.Below(256)
                                                     : 0x3800 + random.Below(2048));
    }
    std::vector<float> wide(bits.size());
    ConvertToF32(bits.data(), from, bits.size(), wide.data());
    std::vector<int8_t> q(bits.size()), wide_q(bits.size());
    std::vector<float> scales(rows), wide_scales(rows);
    QuantizeRows(bits.data(), from, rows, cols, q.data(), scales.data());
    QuantizeRows(wide.data(), DType::kF32, rows, cols, wide_q.data(), wide_scales.data());
    EXPECT_EQ(q, wide_q);
    EXPECT_EQ(scales, wide_scales);
    for (size_t i = 0; i < q.size(); ++i) {
      const float scale = scales[i / static_cast<size_t>(cols)];
      EXPECT_LE(std::abs(static_cast<float>(q[i]) * scale - wide[i]), 0.5001f * scale);
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
