#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/expect_near.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::kernels {
namespace {

class RmsNormTest : public IsaTest {
 protected:
  // Which of the op's optional arguments are given.
  struct Arguments {
    bool x, residual, weight;
  };
  void Check(const Arguments& given, int64_t num_tokens, int64_t channels);
};
VIVARIUM_FOR_EACH_ISA(RmsNormTest);

void RmsNormTest::Check(const Arguments& given, int64_t num_tokens, int64_t channels) {
  const std::string what = std::to_string(num_tokens) + "x" + std::to_string(channels) +
                           (given.x ? " x" : "") + (given.residual ? " residual" : "") +
                           (given.weight ? " weight" : "");
  SCOPED_TRACE(what);
  RandomValues random(9);
  const int64_t stride = channels + 7;
  GuardedArray x(num_tokens * stride), residual(num_tokens * channels), weight(channels);
  random.FillRows(x.data(), num_tokens, channels, stride, 3.0f);
  random.Fill(residual.data(), residual.size(), 10.0f);
  random.Fill(weight.data(), channels);
  GuardedArray out(num_tokens * stride);
  RmsNormParams params{};
  params.x = given.x ? x.data() : nullptr;
  params.x_stride = stride;
  params.residual = given.residual ? residual.data() : nullptr;
  params.weight = given.weight ? weight.data() : nullptr;
  params.out = out.data();
  params.out_stride = stride;
  params.eps = 1e-5f;
  params.num_tokens = num_tokens;
  params.channels = channels;
  const Reference reference = ReferenceRmsNorm(params);
  std::vector<float> expected_residual(residual.data(), residual.data() + residual.size());
  for (int64_t i = 0; i < residual.size() && given.x && given.residual; ++i) {
    expected_residual[static_cast<size_t>(i)] += x[i / channels * stride + i % channels];
  }
  MakeBackend(2)->RmsNorm(params);
  ExpectNear(out.data(), stride, reference, num_tokens, channels, kTolerances.rms_norm,
             "rms_norm " + what);
  EXPECT_TRUE(SameBits(residual.data(), expected_residual.data(), residual.size()));
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t c = channels; c < stride; ++c) ASSERT_TRUE(std::isnan(out[t * stride + c]));
  }
}

TEST_P(RmsNormTest, MatchesReference) {
  for (const int64_t channels : {1, 3, 15, 16, 17, 48, 64, 65, 768, 1000}) {
    for (const int64_t num_tokens : {1, 2, 33}) {
      for (const bool weight : {false, true}) {
        Check({true, true, weight}, num_tokens, channels);
        Check({true, false, weight}, num_tokens, channels);
        Check({false, true, weight}, num_tokens, channels);
      }
    }
  }
}

TEST_P(RmsNormTest, ZeroRowStaysZero) {
  const int64_t channels = 20;
  std::vector<float> x(channels, 0.0f);
  RmsNormParams params{};
  params.x = x.data();
  params.x_stride = params.out_stride = params.channels = channels;
  params.out = x.data();
  params.eps = 1e-5f;
  params.num_tokens = 1;
  MakeBackend()->RmsNorm(params);
  for (const float value : x) EXPECT_EQ(value, 0.0f);
}

// In place, in a batch, on any number of threads: the same bits.
TEST_P(RmsNormTest, RowDoesNotDependOnBatchThreadsOrPlace) {
  const int64_t channels = 333, num_tokens = 200;
  GuardedArray x(num_tokens * channels), weight(channels);
  RandomValues random(10);
  random.Fill(x.data(), x.size());
  random.Fill(weight.data(), channels);
  GuardedArray alone(x.size());
  RmsNormParams params{};
  params.x_stride = params.out_stride = params.channels = channels;
  params.weight = weight.data();
  params.eps = 1e-6f;
  params.num_tokens = 1;
  for (int64_t t = 0; t < num_tokens; ++t) {
    params.x = x.data() + t * channels;
    params.out = alone.data() + t * channels;
    MakeBackend(1)->RmsNorm(params);
  }
  params.num_tokens = num_tokens;
  for (int threads = 1; threads <= 3; ++threads) {
    GuardedArray in_place(x.size());
    std::copy_n(x.data(), x.size(), in_place.data());
    params.x = params.out = in_place.data();
    MakeBackend(threads)->RmsNorm(params);
    ASSERT_TRUE(SameBits(in_place.data(), alone.data(), x.size())) << threads << " threads";
  }
}

}  // namespace
}  // namespace vivarium::kernels
