// What TokenSampler and SampleTokens choose, on the CPU backend, against an oracle in double
// precision.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "kernels/sampling_math.h"
#include "tests/runtime/one_row_sampler.h"
#include "tests/runtime/sampler_oracle.h"

namespace vivarium::engine {
namespace {

using kernels::kWeightOne;
using kernels::RandomBits;
using kernels::TokenWeight;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(int64_t n, uint64_t seed, float spread = 2.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Draws at positions 0 .. num_draws-1 and compares with the oracle by Pearson's chi-square: ids of
// probability zero must never come, the others as often as they should. With m classes the
// statistic has mean m - 1 and variance 2 (m - 1); six deviations above the mean is failure.
void ExpectDistribution(std::span<const float> logits, const SamplingParams& params,
                        std::span<const TranscriptToken> recent = {},
                        std::span<const int32_t> banned = {}) {
  constexpr int kNumDraws = 20000;
  OneRowSampler sampler(logits.size());
  const std::vector<double> expected = OracleDistribution(logits, params, recent, banned);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kNumDraws; ++i) {
    const auto id = sampler.Sample({logits, params, recent, banned, static_cast<uint64_t>(i)});
    ASSERT_TRUE(id.ok()) << id.status();
    ++counts[*id];
  }
  double chi_square = 0, rest_expected = 0, rest_count = 0;
  int num_classes = 0;
  const auto add_class = [&](double count, double mean) {
    chi_square += (count - mean) * (count - mean) / mean;
    ++num_classes;
  };
  for (size_t id = 0; id < logits.size(); ++id) {
    if (expected[id] == 0.0) {
      ASSERT_EQ(counts[id], 0) << "id " << id << " was filtered";
      continue;
    }
    const double mean = expected[id] * kNumDraws;
    if (mean >= 10) {
      add_class(counts[id], mean);
    } else {
      rest_expected += mean;
      rest_count += counts[id];
    }
  }
  if (rest_expected >= 10) add_class(rest_count, rest_expected);
  EXPECT_LT(chi_square, num_classes - 1 + 6 * std::sqrt(2.0 * num_classes) + 1)
      << num_classes << " classes";
}

int32_t SampleOne(std::span<const float> logits, const SamplingParams& params,
                  uint64_t position = 0, std::span<const TranscriptToken> recent = {},
                  std::span<const int32_t> banned = {}) {
  OneRowSampler sampler(logits.size());
  const auto id = sampler.Sample({logits, params, recent, banned, position});
  EXPECT_TRUE(id.ok()) << id.status();
  return id.value_or(-1);
}

std::set<int32_t> Support(std::span<const float> logits, const SamplingParams& params) {
  OneRowSampler sampler(logits.size());
  std::set<int32_t> ids;
  for (uint64_t i = 0; i < 3000; ++i) ids.insert(*sampler.Sample({logits, params, {}, {}, i}));
  return ids;
}

TEST(Philox, KnownAnswers) {  // Random123's kat_vectors
  using kernels::Philox4x32;
  using testing::ElementsAre;
  EXPECT_THAT(Philox4x32({{0, 0, 0, 0}}, 0, 0).words,
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const uint32_t ones = 0xffffffffu;
  EXPECT_THAT(Philox4x32({{ones, ones, ones, ones}}, ones, ones).words,
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(
      Philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u, 0x299f31d0u)
          .words,
      ElementsAre(0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u));
}

TEST(Philox, SeedAndPositionAreBothUsedWhole) {
  std::set<uint64_t> values;
  for (const uint64_t seed : {0ull, 1ull, 1ull << 32, ~0ull}) {
    for (const uint64_t position : {0ull, 1ull, 1ull << 32, ~0ull}) {
      values.insert(RandomBits(seed, position));
    }
  }
  EXPECT_EQ(values.size(), 16u);
}

TEST(TokenWeight, IsExp2) {
  EXPECT_EQ(TokenWeight(0.0f), kWeightOne);
  EXPECT_EQ(TokenWeight(-0.0f), kWeightOne);
  EXPECT_EQ(TokenWeight(-1.0f), kWeightOne / 2);
  EXPECT_EQ(TokenWeight(-42.0f), 1u);
  EXPECT_EQ(TokenWeight(-43.0f), 0u);
  EXPECT_EQ(TokenWeight(-kInfinity), 0u);
  EXPECT_EQ(TokenWeight(-std::numeric_limits<float>::max()), 0u);
  EXPECT_LT(TokenWeight(-std::numeric_limits<float>::denorm_min()), kWeightOne);
  for (float z = -42.0f; z < 0.0f; z += 0.000377f) {
    const double exact = std::exp2(double{z}) * double{kWeightOne};
    EXPECT_NEAR(static_cast<double>(TokenWeight(z)), exact, exact * 1.1e-7 + 1.0) << z;
  }
}

TEST(TokenWeight, NeverRisesAsTheExponentFalls) {
  uint64_t previous = kWeightOne;
  // Every 16th float from -2^-20 to -2; the fraction's bits repeat beyond.
  for (uint32_t bits = std::bit_cast<uint32_t>(-0x1p-20f); bits <= std::bit_cast<uint32_t>(-2.0f);
       bits += 16) {
    const uint64_t weight = TokenWeight(std::bit_cast<float>(bits));
    ASSERT_LE(weight, previous) << std::bit_cast<float>(bits);
    previous = weight;
  }
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowerOfEqualOnes) {
  SamplingParams greedy{.temperature = 0.0f};
  EXPECT_EQ(SampleOne(std::vector<float>{1, 3, 2}, greedy), 1);
  EXPECT_EQ(SampleOne(std::vector<float>{1, 3, 3}, greedy), 1);
  EXPECT_EQ(SampleOne(std::vector<float>{-0.0f, 0.0f}, greedy), 0);
  EXPECT_EQ(SampleOne(std::vector<float>{5}, greedy), 0);
  for (size_t n : {15, 16, 17, 33, 1000}) {
    std::vector<float> logits(n, -1.0f);
    for (size_t best : {size_t{0}, n / 2, n - 1}) {
      logits[best] = 2.0f;
      EXPECT_EQ(SampleOne(logits, greedy), static_cast<int32_t>(best)) << n;
      logits[best] = -1.0f;
    }
  }
}

TEST(Sampler, FollowsTheSoftmax) {
  const auto logits = RandomLogits(50, 1);
  for (const float temperature : {0.3f, 1.0f, 2.5f, kMaxTemperature}) {
    ExpectDistribution(logits, {.temperature = temperature, .seed = 7});
  }
  ExpectDistribution(RandomLogits(3000, 2), {.seed = 8});
}

TEST(Sampler, FollowsEachFilterAndTheirCombinations) {
  const auto logits = RandomLogits(300, 3);
  for (const int32_t top_k : {1, 2, 40, 299, 300, 301, std::numeric_limits<int32_t>::max()}) {
    ExpectDistribution(logits, {.top_k = top_k, .seed = 1});
  }
  for (const float top_p : {1e-6f, 0.1f, 0.5f, 0.9f, 0.999f, 1.0f}) {
    ExpectDistribution(logits, {.top_p = top_p, .seed = 2});
    ExpectDistribution(logits, {.top_k = 20, .top_p = top_p, .seed = 3});
  }
  for (const float min_p : {0.0f, 0.001f, 0.05f, 0.5f, 1.0f}) {
    ExpectDistribution(logits, {.min_p = min_p, .seed = 4});
    ExpectDistribution(logits, {.temperature = 1.7f, .top_k = 50, .top_p = 0.8f, .min_p = min_p});
    ExpectDistribution(logits, {.temperature = 0.7f, .top_p = 0.95f, .min_p = min_p, .seed = 5});
  }
}

TEST(Sampler, FollowsPenaltiesAndBias) {
  const auto logits = RandomLogits(60, 4);
  std::vector<TranscriptToken> recent;
  std::mt19937 random(5);
  for (int i = 0; i < 100; ++i) {
    recent.push_back({static_cast<int32_t>(random() % 30), random() % 2 == 0});
  }
  ExpectDistribution(logits, {.repetition_penalty = 1.3f}, recent);
  ExpectDistribution(logits, {.repetition_penalty = 0.5f}, recent);
  ExpectDistribution(logits, {.presence_penalty = 1.5f}, recent);
  ExpectDistribution(logits, {.frequency_penalty = 0.3f}, recent);
  ExpectDistribution(logits, {.frequency_penalty = -0.3f}, recent);
  ExpectDistribution(logits, {.logit_bias = {{3, 2.0f}, {7, -100.0f}, {59, 1.0f}}}, recent);
  ExpectDistribution(logits,
                     {.temperature = 0.8f,
                      .top_k = 30,
                      .top_p = 0.9f,
                      .min_p = 0.01f,
                      .repetition_penalty = 1.1f,
                      .presence_penalty = 0.5f,
                      .frequency_penalty = 0.2f,
                      .seed = 9,
                      .logit_bias = {{0, 1.0f}, {12, 3.0f}}},
                     recent, std::vector<int32_t>{12, 13});
}

TEST(Sampler, PenaltiesCountEachIdOnceAndLeaveNoTrace) {
  const std::vector<float> logits = {2.0f, 1.5f, -1.0f};
  const SamplingParams params{.temperature = 0.0f, .repetition_penalty = 1.5f};
  OneRowSampler sampler(3);
  const std::vector<TranscriptToken> recent = {{0, false}, {0, true}, {0, false}};
  // 2 / 1.5 = 1.33 < 1.5; divided three times it would be no different here, so check the value
  // too.
  EXPECT_EQ(*sampler.Sample({logits, params, recent, {}, 0}), 1);
  const std::vector<float> close = {2.0f, 1.3f, -1.0f};
  EXPECT_EQ(*sampler.Sample({close, params, recent, {}, 0}), 0) << "penalised more than once";
  EXPECT_EQ(*sampler.Sample({logits, params, {}, {}, 0}), 0) << "counts of an earlier call";
  const std::vector<TranscriptToken> foreign = {{-1, true}, {3, true}, {1 << 30, false}};
  EXPECT_EQ(*sampler.Sample({logits, params, foreign, {}, 0}), 0);
}

TEST(Sampler, TiesGoToTheLowerId) {
  const std::vector<float> equal(10, 1.0f);
  EXPECT_THAT(Support(equal, {.top_k = 3}), testing::ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(equal, {.top_p = 0.35f}), testing::ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(Support(equal, {.min_p = 1.0f}).size(), 10u);
  std::vector<float> zeros = {-0.0f, 0.0f, -0.0f, 0.0f};
  EXPECT_THAT(Support(zeros, {.top_k = 2}), testing::ElementsAre(0, 1));
}

TEST(Sampler, FiltersAtTheirLimits) {
  const auto logits = RandomLogits(100, 6);
  const auto best =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  EXPECT_THAT(Support(logits, {.top_k = 1}), testing::ElementsAre(best));
  EXPECT_THAT(Support(logits, {.top_p = std::numeric_limits<float>::denorm_min()}),
              testing::ElementsAre(best));
  EXPECT_THAT(Support(logits, {.min_p = 1.0f}), testing::ElementsAre(best));
  EXPECT_THAT(Support(logits, {.temperature = std::numeric_limits<float>::denorm_min()}),
              testing::ElementsAre(best));
  // With exact masses 1/2, 1/4, 1/8, 1/8: top_p = 1/2 is reached by the first alone.
  const float ln2 = 0.69314718f;
  const std::vector<float> halves = {0.0f, -ln2, -2 * ln2, -2 * ln2};
  EXPECT_EQ(Support(halves, {.top_p = 0.4999f}).size(), 1u);
  EXPECT_EQ(Support(halves, {.top_p = 0.5001f}).size(), 2u);
  EXPECT_EQ(Support(halves, {.top_p = 0.8751f}).size(), 4u);
}

TEST(Sampler, BannedAndImpossibleIdsAreNeverSampled) {
  std::vector<float> logits = RandomLogits(20, 7);
  logits[3] = -kInfinity;
  const std::vector<int32_t> banned = {5, 6};
  SamplingParams params{.temperature = kMaxTemperature, .logit_bias = {{3, 100.0f}, {5, 100.0f}}};
  OneRowSampler sampler(20);
  for (uint64_t i = 0; i < 5000; ++i) {
    const int32_t id = *sampler.Sample({logits, params, {}, banned, i});
    EXPECT_TRUE(id != 3 && id != 5 && id != 6) << id;
  }
  params.temperature = 0.0f;
  const int32_t id = *sampler.Sample({logits, params, {}, banned, 0});
  EXPECT_TRUE(id != 3 && id != 5 && id != 6) << id;
}

TEST(Sampler, RefusesNaNAndPlusInfinityByName) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    for (const float temperature : {0.0f, 1.0f}) {
      std::vector<float> logits = RandomLogits(40, 8);
      logits[33] = bad;
      const SamplingParams params{.temperature = temperature};
      const auto id = OneRowSampler(40).Sample({logits, params, {}, {}, 1234});
      EXPECT_EQ(id.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(id.status().message()), testing::HasSubstr("token id 33"));
      EXPECT_THAT(std::string(id.status().message()), testing::HasSubstr("position 1234"));
    }
  }
}

TEST(Sampler, NothingLeftToSampleIsAnError) {
  const SamplingParams params;
  std::vector<float> logits(4, -kInfinity);
  EXPECT_EQ(OneRowSampler(4).Sample({logits, params, {}, {}, 0}).status().code(),
            absl::StatusCode::kInternal);
  logits = {1, 2};
  const std::vector<int32_t> banned = {0, 1};
  EXPECT_EQ(OneRowSampler(2).Sample({logits, params, {}, banned, 0}).status().code(),
            absl::StatusCode::kInternal);
}

TEST(Sampler, ExtremeButFiniteLogitsSurviveBiasAndPenalties) {
  const float huge = std::numeric_limits<float>::max();
  const std::vector<float> logits = {huge, -huge, 0.0f};
  const std::vector<TranscriptToken> recent = {{0, true}, {1, true}, {2, true}};
  for (const float penalty : {std::numeric_limits<float>::denorm_min(), 0.5f, 100.0f}) {
    const SamplingParams params{.repetition_penalty = penalty,
                                .presence_penalty = -100.0f,
                                .frequency_penalty = 100.0f,
                                .logit_bias = {{0, 100.0f}, {1, -100.0f}}};
    for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(SampleOne(logits, params, i, recent), 0);
  }
}

TEST(Sampler, DependsOnNothingButTheRequest) {
  const auto logits = RandomLogits(500, 9);
  const SamplingParams params{.temperature = 1.5f, .top_p = 0.97f, .seed = 42};
  std::vector<int32_t> alone;
  for (uint64_t i = 0; i < 200; ++i) alone.push_back(SampleOne(logits, params, i));
  OneRowSampler shared(500);
  const SamplingParams other{.top_k = 7, .repetition_penalty = 2.0f};
  const std::vector<TranscriptToken> recent = {{1, true}, {2, false}};
  for (uint64_t i = 200; i-- > 0;) {
    (void)*shared.Sample({RandomLogits(500, i), other, recent, {}, i});
    EXPECT_EQ(*shared.Sample({logits, params, {}, {}, i}), alone[i]);
  }
  EXPECT_GT(std::set<int32_t>(alone.begin(), alone.end()).size(), 20u);
}

// The contract is the same token on every machine, so these never change.
TEST(Sampler, GoldenTokens) {
  std::vector<float> logits(1000);
  for (int i = 0; i < 1000; ++i) logits[i] = static_cast<float>((i * 7919) % 1000) * 0.01f;
  std::vector<int32_t> ids;
  for (uint64_t position = 0; position < 8; ++position) {
    ids.push_back(SampleOne(logits, {.seed = 12345}, position));
  }
  EXPECT_THAT(ids, testing::ElementsAre(198, 150, 322, 594, 124, 223, 334, 272));
}

}  // namespace
}  // namespace vivarium::engine
