#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/expect_near.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::kernels {
namespace {

struct Shape {
  int64_t num_tokens, rows, cols;
};

float RoundToBF16(float value) { return BF16ToF32(F32ToBF16(value)); }

class LinearTest : public IsaTest {
 protected:
  // W as the kernel holds it: rounded when the weights are bf16.
  static std::vector<float> MakeWeights(int64_t rows, int64_t cols, DType dtype, uint64_t seed) {
    RandomValues random(seed);
    std::vector<float> w(static_cast<size_t>(rows * cols));
    random.Fill(w.data(), rows * cols, 1.0f / std::sqrt(static_cast<float>(cols)));
    for (float& value : w) {
      if (dtype == DType::kBF16) value = RoundToBF16(value);
    }
    return w;
  }
  static void Run(Backend* backend, const GuardedArray& x, int64_t x_stride,
                  const PackedMatrix& weight, const float* bias, GuardedArray* out,
                  int64_t out_stride, int64_t num_tokens) {
    LinearParams params{};
    params.x = x.data();
    params.x_stride = x_stride;
    params.weight = &weight;
    params.bias = bias;
    params.out = out->data();
    params.out_stride = out_stride;
    params.num_tokens = num_tokens;
    backend->Linear(params);
  }
  // Activations as the kernel sees them.
  std::vector<float> Seen(const GuardedArray& x, DType weights) const {
    std::vector<float> seen(x.data(), x.data() + x.size());
    if (GetParam() != "portable" && GetParam() != "avx2" && weights == DType::kBF16) {
      for (float& value : seen) value = RoundToBF16(value);
    }
    return seen;
  }
  void CheckShape(const Shape& shape, DType dtype, bool with_bias);
};

VIVARIUM_FOR_EACH_ISA(LinearTest);

void LinearTest::CheckShape(const Shape& shape, DType dtype, bool with_bias) {
  const std::string what = std::to_string(shape.num_tokens) + "x" + std::to_string(shape.rows) +
                           "x" + std::to_string(shape.cols) + " " + std::string(DTypeName(dtype)) +
                           (with_bias ? " bias" : "");
  SCOPED_TRACE(what);
  const std::unique_ptr<Backend> backend = MakeBackend(2);
  const std::vector<float> w = MakeWeights(shape.rows, shape.cols, dtype, 1);
  const std::unique_ptr<PackedMatrix> packed =
      backend->Pack(w.data(), DType::kF32, shape.rows, shape.cols, dtype);
  ASSERT_NE(packed, nullptr);
  EXPECT_EQ(packed->rows(), shape.rows);
  EXPECT_EQ(packed->cols(), shape.cols);
  EXPECT_EQ(packed->dtype(), dtype);
  EXPECT_GE(packed->bytes(), static_cast<size_t>(shape.rows * shape.cols) * DTypeBytes(dtype));

  const int64_t x_stride = shape.cols + 5;
  const int64_t out_stride = shape.rows + 3;
  GuardedArray x(shape.num_tokens * x_stride - 5);
  RandomValues random(2);
  random.FillRows(x.data(), shape.num_tokens, shape.cols, x_stride);
  GuardedArray bias(shape.rows);
  random.Fill(bias.data(), shape.rows);
  GuardedArray out(shape.num_tokens * out_stride);
  Run(backend.get(), x, x_stride, *packed, with_bias ? bias.data() : nullptr, &out, out_stride,
      shape.num_tokens);

  const std::vector<float> seen = Seen(x, dtype);
  ExpectNear(out.data(), out_stride,
             ReferenceLinear(seen.data(), x_stride, w.data(), with_bias ? bias.data() : nullptr,
                             shape.num_tokens, shape.rows, shape.cols),
             shape.num_tokens, shape.rows, kTolerances.linear, "linear " + what);
  for (int64_t t = 0; t < shape.num_tokens; ++t) {
    for (int64_t c = shape.rows; c < out_stride; ++c) {
      ASSERT_TRUE(std::isnan(out[t * out_stride + c])) << "wrote past the row's columns";
    }
  }
}

TEST_P(LinearTest, MatchesReference) {
  const Shape shapes[] = {{1, 1, 1},     {1, 1, 2},    {2, 3, 1},    {1, 16, 7},   {3, 15, 16},
                          {5, 17, 33},   {6, 48, 64},  {7, 63, 65},  {1, 64, 64},  {4, 65, 31},
                          {11, 80, 96},  {13, 80, 96}, {25, 33, 17}, {12, 100, 3}, {70, 130, 47},
                          {2, 192, 300}, {1, 257, 513}};
  for (const Shape& shape : shapes) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const bool with_bias : {false, true}) CheckShape(shape, dtype, with_bias);
    }
  }
}

// More rows than are rounded to bf16 at a time.
TEST_P(LinearTest, MatchesReferenceOnManyRows) {
  const std::vector<int64_t> counts =
      kEmulated ? std::vector<int64_t>{129} : std::vector<int64_t>{509, 510, 511, 1021};
  for (const int64_t num_tokens : counts) {
    CheckShape({num_tokens, 20, 18}, DType::kF32, true);
    CheckShape({num_tokens, 20, 18}, DType::kBF16, true);
  }
}

TEST_P(LinearTest, ZeroTokensIsNothing) {
  const std::unique_ptr<Backend> backend = MakeBackend(2);
  const std::vector<float> w = MakeWeights(8, 8, DType::kF32, 1);
  const auto packed = backend->Pack(w.data(), DType::kF32, 8, 8, DType::kBF16);
  GuardedArray nothing(0);
  Run(backend.get(), nothing, 8, *packed, nullptr, &nothing, 8, 0);
}

// A row's bits are the same alone and among 1 to 69 others, whatever those are.
TEST_P(LinearTest, RowDoesNotDependOnBatch) {
  const int64_t rows = 150, cols = 101, max_tokens = 70;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::unique_ptr<Backend> backend = MakeBackend(2);
    const std::vector<float> w = MakeWeights(rows, cols, dtype, 3);
    const auto packed = backend->Pack(w.data(), DType::kF32, rows, cols, dtype);
    GuardedArray x(max_tokens * cols);
    RandomValues(4).Fill(x.data(), x.size());
    GuardedArray bias(rows);
    RandomValues(5).Fill(bias.data(), rows);
    GuardedArray alone(max_tokens * rows);
    for (int64_t t = 0; t < max_tokens; ++t) {
      GuardedArray row(cols), result(rows);
      std::copy_n(x.data() + t * cols, cols, row.data());
      Run(backend.get(), row, cols, *packed, bias.data(), &result, rows, 1);
      std::copy_n(result.data(), rows, alone.data() + t * rows);
    }
    for (int64_t num_tokens = 2; num_tokens <= max_tokens; num_tokens += kEmulated ? 17 : 1) {
      GuardedArray out(num_tokens * rows);
      Run(backend.get(), x, cols, *packed, bias.data(), &out, rows, num_tokens);
      ASSERT_TRUE(SameBits(out.data(), alone.data(), out.size()))
          << num_tokens << " rows, " << DTypeName(dtype);
    }
    x[0] =
        std::numeric_limits<float>::quiet_NaN();  // a neighbour gone wrong spoils its own row only
    GuardedArray out(max_tokens * rows);
    Run(backend.get(), x, cols, *packed, bias.data(), &out, rows, max_tokens);
    EXPECT_TRUE(std::isnan(out[0]));
    EXPECT_TRUE(SameBits(out.data() + rows, alone.data() + rows, out.size() - rows));
  }
}

TEST_P(LinearTest, ThreadCountsAgree) {
  const int64_t rows = kEmulated ? 90 : 1000, cols = 130, num_tokens = 37;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<float> w = MakeWeights(rows, cols, dtype, 6);
    GuardedArray x(num_tokens * cols);
    RandomValues(7).Fill(x.data(), x.size());
    GuardedArray first(num_tokens * rows);
    for (int threads = 1; threads <= 3; ++threads) {
      const std::unique_ptr<Backend> backend = MakeBackend(threads);
      const auto packed = backend->Pack(w.data(), DType::kF32, rows, cols, dtype);
      GuardedArray out(num_tokens * rows);
      Run(backend.get(), x, cols, *packed, nullptr, &out, rows, num_tokens);
      if (threads == 1) std::copy_n(out.data(), out.size(), first.data());
      ASSERT_TRUE(SameBits(out.data(), first.data(), out.size())) << threads << " threads";
    }
  }
}

// Packing from any file dtype, to both held dtypes.
TEST_P(LinearTest, PacksFromEveryDType) {
  const int64_t rows = 70, cols = 301;
  const std::unique_ptr<Backend> backend = MakeBackend(2);
  RandomValues random(8);
  std::vector<uint16_t> bits(static_cast<size_t>(rows * cols));
  for (const DType from : {DType::kBF16, DType::kF16}) {
    std::vector<float> wide(bits.size());
    for (size_t i = 0; i < bits.size(); ++i) {
      // Finite in both formats: exponents near 1.
      bits[i] = static_cast<uint16_t>(from == DType::kBF16 ? 0x3f00 + random.Below(256)
                                                           : 0x3800 + random.Below(2048));
    }
    ConvertToF32(bits.data(), from, bits.size(), wide.data());
    for (const DType to : {DType::kF32, DType::kBF16}) {
      const auto narrow_packed = backend->Pack(bits.data(), from, rows, cols, to);
      const auto wide_packed = backend->Pack(wide.data(), DType::kF32, rows, cols, to);
      GuardedArray x(cols), out(rows), expected(rows);
      random.Fill(x.data(), cols);
      Run(backend.get(), x, cols, *narrow_packed, nullptr, &out, rows, 1);
      Run(backend.get(), x, cols, *wide_packed, nullptr, &expected, rows, 1);
      EXPECT_TRUE(SameBits(out.data(), expected.data(), rows));
      std::vector<float> held = wide;
      for (float& value : held) {
        if (to == DType::kBF16) value = RoundToBF16(value);
      }
      const std::vector<float> seen = Seen(x, to);
      ExpectNear(out.data(), rows,
                 ReferenceLinear(seen.data(), cols, held.data(), nullptr, 1, rows, cols), 1, rows,
                 kTolerances.linear, "packed");
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
