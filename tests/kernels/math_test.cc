// Accuracy of exp, softplus and SiLU on each path, measured through the ops that use them: a
// convolution of width 1 with weight 1 is SiLU; a scan with A = 0 integrates softplus(dt); a scan
// with x = 0 decays by exp(dt * A). SiLU of a large gate is the identity times the gate.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGate = 64.0f;  // silu(64) = 64 in f32

class MathTest : public IsaTest {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda") GTEST_SKIP() << "the CPU's own functions";
  }
  std::vector<float> Silu(std::vector<float> v) const;
  // y = 64 * (exp(softplus(dt) * a) * h + softplus(dt) * x), one lane per element.
  std::vector<float> Scan(const std::vector<float>& dt, float x, const std::vector<float>& a,
                          float h) const;
};
VIVARIUM_FOR_EACH_ISA(MathTest);

std::vector<float> MathTest::Silu(std::vector<float> v) const {
  const std::vector<float> ones(v.size(), 1.0f);
  const Segment segment{0, 1, kPadSlot, kPadSlot};
  CausalConv1dParams params{};
  params.x = v.data();
  params.weight = ones.data();
  params.out = v.data();
  params.segments = &segment;
  params.num_segments = 1;
  params.channels = static_cast<int64_t>(v.size());
  params.x_stride = params.out_stride = params.channels;
  params.width = 1;
  MakeBackend()->CausalConv1d(params);
  return v;
}

std::vector<float> MathTest::Scan(const std::vector<float>& dt, float x,
                                  const std::vector<float>& a, float h) const {
  EXPECT_EQ(dt.size() % kChannelTile, 0u);
  const std::vector<float> xs(dt.size(), x), gates(dt.size(), kGate), zeros(dt.size(), 0.0f);
  std::vector<float> y(dt.size()), states(dt.size(), h);
  const float one = 1.0f;
  const Segment segment{0, 1, 0, kPadSlot};
  SelectiveScanParams params{};
  params.x = xs.data();
  params.z = gates.data();
  params.dt = dt.data();
  params.b = params.c = &one;
  params.a = a.data();
  params.dt_bias = params.d_skip = zeros.data();
  params.states = states.data();
  params.y = y.data();
  params.segments = &segment;
  params.num_segments = 1;
  params.channels = static_cast<int64_t>(dt.size());
  params.x_stride = params.z_stride = params.dt_stride = params.y_stride = params.channels;
  params.d_state = 1;
  MakeBackend()->SelectiveScan(params);
  return y;
}

// Evenly spaced, a whole number of tiles.
std::vector<float> Sweep(float low, float high, int count) {
  std::vector<float> values;
  for (int i = 0; i < count; ++i) {
    values.push_back(low + (high - low) * static_cast<float>(i) / static_cast<float>(count - 1));
  }
  return values;
}

TEST_P(MathTest, SiluIsAccurate) {
  double worst = 0.0;
  for (const auto& [low, high] : {std::pair{-87.0f, 100.0f}, {-2.0f, 2.0f}, {-1e-3f, 1e-3f}}) {
    const std::vector<float> v = Sweep(low, high, 64 * 1024);
    const std::vector<float> found = Silu(v);
    for (size_t i = 0; i < v.size(); ++i) {
      const double expected = ReferenceSilu(v[i]);
      if (std::abs(expected) < 1e-36) continue;
      worst = std::max(worst, std::abs(found[i] / expected - 1.0));
    }
  }
  std::printf("silu: largest relative error %.3g\n", worst);
  EXPECT_LE(worst, kTolerances.silu);
}

TEST_P(MathTest, SoftplusIsAccurate) {
  double worst = 0.0;
  for (const auto& [low, high] :
       {std::pair{-80.0f, 30.0f}, {-2.0f, 2.0f}, {19.9f, 20.1f}, {-1e-3f, 1e-3f}}) {
    const std::vector<float> v = Sweep(low, high, 64 * 1024);
    const std::vector<float> found = Scan(v, 1.0f, std::vector<float>(v.size(), 0.0f), 0.0f);
    for (size_t i = 0; i < v.size(); ++i) {
      worst = std::max(worst, std::abs(found[i] / kGate / ReferenceSoftplus(v[i]) - 1.0));
    }
  }
  std::printf("softplus: largest relative error %.3g\n", worst);
  EXPECT_LE(worst, kTolerances.softplus);
}

// The decay's argument is a product of f32 numbers, so its rounding counts |argument| times: the
// bound is for the function itself, the reference takes the rounded dt * A.
TEST_P(MathTest, DecayIsAccurate) {
  double worst_near_one = 0.0, worst_absolute = 0.0;
  const std::vector<float> dt(64 * 1024, 32.0f);  // softplus(32) = 32, a power of two
  for (const auto& [low, high] : {std::pair{-2.7f, 0.0f}, {-0.01f, 0.0f}}) {
    const std::vector<float> a = Sweep(low, high, 64 * 1024);
    const std::vector<float> found = Scan(dt, 0.0f, a, 1.0f);
    for (size_t i = 0; i < a.size(); ++i) {
      const double argument = 32.0 * a[i];
      const double error = std::abs(found[i] / kGate - std::exp(argument));
      worst_absolute = std::max(worst_absolute, error);
      if (argument > -1.0) worst_near_one = std::max(worst_near_one, error / std::exp(argument));
    }
  }
  std::printf("decay: largest relative error %.3g above exp(-1), absolute %.3g below\n",
              worst_near_one, worst_absolute);
  EXPECT_LE(worst_near_one, kTolerances.exp);
  EXPECT_LE(worst_absolute, kTolerances.exp);
}

TEST_P(MathTest, ExtremesAreWhatTheEquationsSay) {
  const std::vector<float> silu =
      Silu({0.0f, -0.0f, 200.0f, -200.0f, kInfinity, std::nanf(""), 3e38f, -3e38f});
  EXPECT_EQ(silu[0], 0.0f);
  EXPECT_EQ(silu[1], 0.0f);
  EXPECT_EQ(silu[2], 200.0f);
  EXPECT_NEAR(silu[3], 0.0f, 1e-36f);
  EXPECT_EQ(silu[4], kInfinity);
  EXPECT_TRUE(std::isnan(silu[5]));
  EXPECT_EQ(silu[6], 3e38f);
  EXPECT_EQ(silu[7], 0.0f);

  std::vector<float> dt(16, 0.0f);
  dt[0] = -200.0f;
  dt[1] = 200.0f;
  dt[2] = std::nanf("");
  dt[3] = -kInfinity;
  dt[4] = 1e30f;
  const std::vector<float> softplus = Scan(dt, 1.0f, std::vector<float>(16, 0.0f), 0.0f);
  EXPECT_NEAR(softplus[0], 0.0f, 1e-36f);
  EXPECT_EQ(softplus[1], 200.0f * kGate);
  EXPECT_TRUE(std::isnan(softplus[2]));
  EXPECT_EQ(softplus[3], 0.0f);
  EXPECT_EQ(softplus[4], 1e30f * kGate);
  EXPECT_EQ(softplus[5], softplus[6]);

  // A decay that underflows forgets; A = -infinity (an overflown A_log) forgets at once.
  std::vector<float> a(16, -1e4f);
  a[1] = -kInfinity;
  a[2] = -3e38f;
  a[3] = -0.0f;
  const std::vector<float> decay = Scan(std::vector<float>(16, 30.0f), 0.0f, a, 1.0f);
  EXPECT_EQ(decay[0], 0.0f);
  EXPECT_EQ(decay[1], 0.0f);
  EXPECT_EQ(decay[2], 0.0f);
  EXPECT_EQ(decay[3], kGate);
}

}  // namespace
}  // namespace vivarium::kernels
