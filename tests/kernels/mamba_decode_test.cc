// MambaDecode: the bits of the ops that it stands for, and near double precision.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/decode_case.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/reference.h"

namespace vivarium::kernels {
namespace {

class MambaDecodeTest : public IsaTest {
 protected:
  void SetUp() override {
    if (GetParam() != "cuda") GTEST_SKIP() << "the CPU has no fused form";
  }
};
VIVARIUM_FOR_EACH_ISA(MambaDecodeTest);

TEST(MambaDecodeCpuTest, TheCpuHasNone) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend("", 1);
  DecodeCase c({32, 64, 2, 16, 4}, 3, backend.get());
  EXPECT_FALSE(backend->MambaDecode(c.Params()));
}

void ExpectTheOpsBits(const DecodeShape& shape, int64_t num_rows, Backend* backend) {
  SCOPED_TRACE(shape.Name() + ", rows " + std::to_string(num_rows));
  DecodeCase fused(shape, num_rows, backend);
  DecodeCase ops(shape, num_rows, backend);
  ASSERT_TRUE(backend->MambaDecode(fused.Params()));
  backend->Synchronize();
  ops.RunOps(backend);
  for (int64_t i = 0; i < fused.residual.size(); ++i) {
    ASSERT_FALSE(std::isnan(ops.residual[i]));
    ASSERT_EQ(fused.residual[i], ops.residual[i])
        << "row " << i / shape.d_model << " column " << i % shape.d_model;
  }
  // All slots, and the gaps between them, whether they are written or not.
  EXPECT_TRUE(SameBits(fused.states.data(), ops.states.data(), ops.states.size()));
}

TEST_P(MambaDecodeTest, HasTheOpsBits) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (const DecodeShape& shape : {
           DecodeShape{64, 128, 4, 16, 4},
           DecodeShape{2, 1, 1, 1, 2},
           DecodeShape{18, 15, 3, 2, 3, false},
           DecodeShape{30, 17, 5, 5, 4, true, true},
           DecodeShape{50, 33, 17, 16, 4, false, true},
           DecodeShape{130, 100, 7, 32, 2, true, false},
           DecodeShape{96, 200, 33, 8, 4, false, false},
           DecodeShape{258, 71, 130, 17, 3, true, true},
           DecodeShape{64, 128, 4, 16, 4, true, false, DType::kI8},
           DecodeShape{258, 71, 130, 17, 3, true, true, DType::kI8},
       }) {
    for (const int64_t num_rows : {1, 2, 5, 8, 9, 16}) {
      ExpectTheOpsBits(shape, num_rows, backend.get());
    }
  }
}

TEST_P(MambaDecodeTest, EveryNumberOfRows) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (int64_t num_rows = 1; num_rows <= kMaxDecodeRows; ++num_rows) {
    ExpectTheOpsBits({34, 40, 3, 16, 4}, num_rows, backend.get());
  }
}

// More row tiles than blocks, more steps than a ring holds.
TEST_P(MambaDecodeTest, RingsGoRound) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  ExpectTheOpsBits({2600, 160, 10, 16, 4}, 3, backend.get());
  ExpectTheOpsBits({2600, 100, 10, 16, 4, true, false, DType::kI8}, 2, backend.get());
  ExpectTheOpsBits({200, 2500, 10, 16, 4, true, true}, 10, backend.get());
}

// A row's bits don't depend on the others, nor on its place.
TEST_P(MambaDecodeTest, RowsAreIndependent) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const DecodeShape shape{48, 70, 3, 16, 4};
  DecodeCase together(shape, kMaxDecodeRows, backend.get());
  ASSERT_TRUE(backend->MambaDecode(together.Params()));
  backend->Synchronize();
  for (int32_t row = 0; row < kMaxDecodeRows; ++row) {
    DecodeCase alone(shape, kMaxDecodeRows, backend.get());
    std::copy_n(alone.residual.data() + row * shape.d_model, shape.d_model, alone.residual.data());
    alone.segments = {alone.segments[static_cast<size_t>(row)]};
    alone.segments[0].token_begin = 0;
    MambaDecodeParams params = alone.Params();
    params.num_rows = 1;
    ASSERT_TRUE(backend->MambaDecode(params));
    backend->Synchronize();
    EXPECT_TRUE(SameBits(alone.residual.data(), together.residual.data() + row * shape.d_model,
                         shape.d_model))
        << "row " << row;
    const int32_t slot = alone.segments[0].write_slot;
    if (slot == kPadSlot) continue;
    const int64_t offset = slot * alone.slot_stride();
    EXPECT_TRUE(SameBits(alone.states.data() + offset, together.states.data() + offset,
                         alone.slot_stride()))
        << "row " << row;
  }
}

// Steps and layers one after the other, with nothing between them.
TEST_P(MambaDecodeTest, StepsFollowEachOther) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const DecodeShape shape{40, 72, 3, 16, 4};
  DecodeCase fused(shape, 2, backend.get());
  DecodeCase ops(shape, 2, backend.get());
  for (DecodeCase* c : {&fused, &ops}) c->segments[1].write_slot = c->segments[1].read_slot;
  constexpr int kSteps = 4;
  for (int i = 0; i < kSteps; ++i) ASSERT_TRUE(backend->MambaDecode(fused.Params()));
  backend->Synchronize();
  for (int i = 0; i < kSteps; ++i) ops.RunOps(backend.get());
  EXPECT_TRUE(SameBits(fused.residual.data(), ops.residual.data(), ops.residual.size()));
  EXPECT_TRUE(SameBits(fused.states.data(), ops.states.data(), ops.states.size()));
}

TEST_P(MambaDecodeTest, RefusesWhatIsNotFused) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const auto expect_refused = [&](DecodeShape shape, int64_t num_rows) {
    DecodeCase c(shape, num_rows, backend.get());
    const std::vector<float> before(c.residual.data(), c.residual.data() + c.residual.size());
    EXPECT_FALSE(backend->MambaDecode(c.Params())) << shape.Name();
    backend->Synchronize();
    EXPECT_TRUE(SameBits(before.data(), c.residual.data(), c.residual.size()));
  };
  expect_refused({32, 32, 2, 16, 4}, kMaxDecodeRows + 1);
  expect_refused({33, 32, 2, 16, 4}, 1);  // odd d_model
  expect_refused({32, 32, 2, 16, 1}, 1);
  expect_refused({32, 32, 2, 16, 5}, 1);
  expect_refused({32, 32, 2, 33, 4}, 1);
  expect_refused({32, 32, 2, 16, 4, true, false, DType::kF32}, 1);
  expect_refused({32, 8192, 2, 1, 4}, kMaxDecodeRows);  // activations that a block can't hold
}

TEST_P(MambaDecodeTest, NormLinearHasTheOpsBits) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (const auto& [rows, dtype] : {std::pair{1, DType::kBF16},
                                    {15, DType::kBF16},
                                    {16, DType::kI8},
                                    {33, DType::kI8},
                                    {200, DType::kBF16}}) {
    for (const int64_t num_rows : {1, 7, 8, 9, 16}) {
      const int64_t cols = 2 * rows + 6;
      RandomValues random(31);
      std::vector<float> w(static_cast<size_t>(rows * cols));
      random.Fill(w.data(), rows * cols);
      GuardedArray x(num_rows * cols), norm_weight(cols), normed(num_rows * cols);
      random.Fill(x.data(), x.size());
      random.Fill(norm_weight.data(), cols);
      const auto packed = PackAs(dtype, w, rows, backend.get());
      const int64_t stride = rows + 3;
      GuardedArray fused(num_rows * stride), ops(num_rows * stride);
      ASSERT_TRUE(backend->NormLinear(
          {x.data(), norm_weight.data(), 1e-5f, packed.get(), fused.data(), stride, num_rows}));
      backend->RmsNorm({x.data(), cols, nullptr, norm_weight.data(), normed.data(), cols, 1e-5f,
                        num_rows, cols});
      backend->Linear({normed.data(), cols, packed.get(), nullptr, ops.data(), stride, num_rows});
      backend->Synchronize();
      EXPECT_TRUE(SameBits(fused.data(), ops.data(), ops.size())) << rows << " x " << num_rows;
    }
  }
}

std::vector<float> RoundedBF16(const std::vector<double>& values) {
  std::vector<float> rounded;
  for (const double v : values) rounded.push_back(BF16ToF32(F32ToBF16(static_cast<float>(v))));
  return rounded;
}

std::vector<float> Floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// residual after the step, and the states written, in double precision but for the roundings to
// bf16.
struct DecodeReference {
  std::vector<double> residual;
  std::vector<Reference> conv_states, ssm_states;  // per row
};

DecodeReference ReferenceDecode(DecodeCase& c) {
  const DecodeShape& shape = c.shape();
  const int64_t rows = c.num_rows(), d_inner = shape.d_inner;
  const int64_t cols = shape.dt_rank + 2 * shape.d_state;
  const MambaDecodeParams p = c.Params();
  const auto linear = [rows](const std::vector<double>& x, const std::vector<float>& w,
                             const float* bias, int64_t k) {
    const auto n = static_cast<int64_t>(w.size()) / k;
    return ReferenceLinear(RoundedBF16(x).data(), k, w.data(), bias, rows, n, k).value;
  };
  const auto xz = Floats(linear(ReferenceRmsNorm({nullptr, 0, p.residual, p.norm_weight, nullptr, 0,
                                                  p.norm_eps, rows, shape.d_model})
                                    .value,
                                c.in_proj, p.in_proj_bias, shape.d_model));
  const StatefulReference conv =
      ReferenceCausalConv1d({xz.data(), 2 * d_inner, p.conv_weight, p.conv_bias, p.conv_states,
                             p.slot_stride, nullptr, 0, p.segments, rows, d_inner, p.d_conv},
                            rows);
  std::vector<float> projected = Floats(linear(conv.out.value, c.x_proj, nullptr, d_inner));
  for (int64_t row = 0; shape.has_norms && row < rows; ++row) {
    float* part = projected.data() + row * cols;
    for (const int64_t channels : {shape.dt_rank, int64_t{shape.d_state}, int64_t{shape.d_state}}) {
      const auto normed = Floats(ReferenceRmsNorm({part, channels, nullptr, nullptr, nullptr, 0,
                                                   p.mixer_norm_eps, 1, channels})
                                     .value);
      part = std::copy(normed.begin(), normed.end(), part);
    }
  }
  std::vector<double> r;
  for (int64_t row = 0; row < rows; ++row) {
    r.insert(r.end(), projected.begin() + row * cols,
             projected.begin() + row * cols + shape.dt_rank);
  }
  const auto dt = Floats(linear(r, c.dt_proj, nullptr, shape.dt_rank));
  const auto x = Floats(conv.out.value);
  SelectiveScanParams scan{};
  scan.x = x.data();
  scan.x_stride = d_inner;
  scan.z = xz.data() + d_inner;
  scan.z_stride = 2 * d_inner;
  scan.dt = dt.data();
  scan.dt_stride = d_inner;
  scan.b = projected.data() + shape.dt_rank;
  scan.c = scan.b + shape.d_state;
  scan.bc_stride = cols;
  scan.a = p.a;
  scan.dt_bias = p.dt_bias;
  scan.d_skip = p.d_skip;
  scan.states = p.ssm_states;
  scan.slot_stride = p.slot_stride;
  scan.segments = p.segments;
  scan.num_segments = rows;
  scan.channels = d_inner;
  scan.d_state = shape.d_state;
  const StatefulReference y = ReferenceSelectiveScan(scan, rows);
  DecodeReference result{linear(y.out.value, c.out_proj, p.out_proj_bias, d_inner), conv.states,
                         y.states};
  for (size_t i = 0; i < result.residual.size(); ++i) result.residual[i] += p.residual[i];
  return result;
}

// A value that lies between two of bf16 may be rounded to the other one: 2^-8 of one of many terms.
TEST_P(MambaDecodeTest, IsNearDoublePrecision) {
  constexpr double kTolerance = 0.02;
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (const DecodeShape& shape :
       {DecodeShape{64, 100, 5, 16, 4}, DecodeShape{90, 64, 33, 20, 3, false, true}}) {
    SCOPED_TRACE(shape.Name());
    DecodeCase c(shape, 11, backend.get());
    const DecodeReference reference = ReferenceDecode(c);
    ASSERT_TRUE(backend->MambaDecode(c.Params()));
    backend->Synchronize();
    for (size_t i = 0; i < reference.residual.size(); ++i) {
      ASSERT_NEAR(c.residual[static_cast<int64_t>(i)], reference.residual[i], kTolerance) << i;
    }
    for (const Segment& segment : c.segments) {
      if (segment.write_slot == kPadSlot) continue;
      const auto row = static_cast<size_t>(segment.token_begin);
      const int64_t offset = segment.write_slot * c.slot_stride();
      const auto expect_near = [&](const float* found, const Reference& expected) {
        for (size_t i = 0; i < expected.value.size(); ++i) {
          ASSERT_NEAR(found[i], expected.value[i], kTolerance) << "row " << row << " at " << i;
        }
      };
      expect_near(c.conv_states() + offset, reference.conv_states[row]);
      expect_near(c.ssm_states() + offset, reference.ssm_states[row]);
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
