#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/sampling_math.h"
#include "tests/kernels/reference_sampler.h"
#include "tests/runtime/one_row_sampler.h"

namespace vivarium::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double OracleLogSum(std::span<const float> logits) {
  double max_logit = -kInfinity, sum = 0;
  for (const float logit : logits) max_logit = std::fmax(max_logit, logit);
  for (const float logit : logits) sum += std::exp(logit - max_logit);
  return max_logit + std::log(sum);
}

TEST(NaturalLog, AgreesWithTheLibrary) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-300, 300);
  for (int i = 0; i < 100000; ++i) {
    const double value = std::exp2(exponent(random));
    EXPECT_NEAR(kernels::NaturalLog(value), std::log(value),
                4e-16 * std::fabs(std::log(value)) + 1e-16);
  }
  EXPECT_EQ(kernels::NaturalLog(1.0), 0.0);
  for (const double near_one : {0.999999999, 1.000000001, 1.4142135623730950, 1.4142135623730954}) {
    EXPECT_NEAR(kernels::NaturalLog(near_one), std::log(near_one), 2e-16);
  }
}

TEST(Logprobs, AgreesWithDoublePrecision) {
  std::mt19937_64 random(2);
  for (const float spread : {0.0f, 0.1f, 2.0f, 10.0f, 100.0f}) {
    for (const int n : {1, 2, 17, 320, 50277}) {
      std::normal_distribution<float> normal(5.0f, spread);
      std::vector<float> logits(n);
      for (float& logit : logits) logit = spread == 0.0f ? 3.0f : normal(random);
      const double log_sum = OracleLogSum(logits);
      const kernels::ReferenceLogSoftmax reference(logits);
      OneRowSampler sampler(n);
      for (int id = 0; id < n; ++id) {
        const double exact = logits[id] - log_sum;
        ASSERT_NEAR(reference(id), exact, 1e-6 + 6e-8 * std::fabs(exact)) << n << " " << spread;
        if (id % 97 == 0) {
          ASSERT_EQ(*sampler.Score(logits, id, 0), reference(id));
        }
      }
    }
  }
}

TEST(Logprobs, TopIsBestFirstAndTiesGoToTheLowerId) {
  const std::vector<float> logits = {1, 3, -kInfinity, 3, 2, 0};
  OneRowSampler sampler(6);
  const SamplingParams params;
  const auto top = [&](int32_t count) {
    EXPECT_TRUE(sampler.Sample({logits, params, {}, {}, 0, count}).ok());
    return sampler.last().TopLogprobs(0);
  };
  EXPECT_TRUE(top(0).empty());
  std::vector<int32_t> ids;
  for (const TokenLogprob& entry : top(4)) {
    ids.push_back(entry.token_id);
    EXPECT_EQ(entry.logprob, *sampler.Score(logits, entry.token_id, 0));
  }
  EXPECT_THAT(ids, testing::ElementsAre(1, 3, 4, 0));
  EXPECT_EQ(top(kMaxTopLogprobs).size(), 6u);
  EXPECT_EQ(top(kMaxTopLogprobs).back().logprob, -kInfinity);
}

TEST(Logprobs, RefusesWhatIsNoDistribution) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, kInfinity}) {
    const auto status = OneRowSampler(2).Score(std::vector<float>{1, bad}, 0, 5).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("token id 1 is"));
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("position 5"));
  }
  const auto status = OneRowSampler(3).Score(std::vector<float>(3, -kInfinity), 0, 5).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("all 3 logits are -infinity"));
}

}  // namespace
}  // namespace vivarium::engine
