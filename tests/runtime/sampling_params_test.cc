#include "engine/runtime/sampling_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace vivarium::engine {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kVocab = 100;

float Above(float value) { return std::nextafter(value, kInfinity); }
float Below(float value) { return std::nextafter(value, -kInfinity); }

void ExpectLegal(const SamplingParams& params) {
  EXPECT_TRUE(ValidateSamplingParams(params, kVocab).ok())
      << ValidateSamplingParams(params, kVocab);
}

void ExpectRefused(const SamplingParams& params, const std::string& field) {
  const absl::Status status = ValidateSamplingParams(params, kVocab);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(field));
}

TEST(SamplingParams, DefaultsAreLegal) { ExpectLegal({}); }

TEST(SamplingParams, EachFieldAtItsBoundAndOnePast) {
  struct Case {
    const char* field;
    float SamplingParams::*member;
    float low, high;
    bool low_is_legal = true;
  };
  for (const Case& c :
       {Case{"temperature", &SamplingParams::temperature, 0.0f, kMaxTemperature},
        Case{"top_p", &SamplingParams::top_p, 0.0f, 1.0f, false},
        Case{"min_p", &SamplingParams::min_p, 0.0f, 1.0f},
        Case{"repetition_penalty", &SamplingParams::repetition_penalty, 0.0f, 100.0f, false},
        Case{"presence_penalty", &SamplingParams::presence_penalty, -100.0f, 100.0f},
        Case{"frequency_penalty", &SamplingParams::frequency_penalty, -100.0f, 100.0f}}) {
    const auto with = [&](float value) {
      SamplingParams params;
      params.*c.member = value;
      return params;
    };
    ExpectLegal(with(c.low_is_legal ? c.low : Above(c.low)));
    ExpectRefused(with(c.low_is_legal ? Below(c.low) : c.low), c.field);
    ExpectLegal(with(c.high));
    ExpectRefused(with(Above(c.high)), c.field);
    for (const float bad : {kNaN, kInfinity, -kInfinity}) ExpectRefused(with(bad), c.field);
  }
  ExpectLegal({.top_k = std::numeric_limits<int32_t>::max()});
  ExpectRefused({.top_k = -1}, "top_k is -1");
}

TEST(SamplingParams, LogitBias) {
  ExpectLegal({.logit_bias = {{0, -100.0f}, {99, 100.0f}}});
  ExpectRefused({.logit_bias = {{-1, 0.0f}}}, "token id -1");
  ExpectRefused({.logit_bias = {{100, 0.0f}}}, "token id 100");
  ExpectRefused({.logit_bias = {{5, 0.0f}, {5, 0.0f}}}, "distinct");
  ExpectRefused({.logit_bias = {{6, 0.0f}, {5, 0.0f}}}, "sorted");
  for (const float bad : {Above(100.0f), Below(-100.0f), kNaN, kInfinity}) {
    ExpectRefused({.logit_bias = {{5, bad}}}, "logit_bias[5]");
  }
  SamplingParams many;
  for (int32_t id = 0; id < kMaxLogitBias; ++id) many.logit_bias.push_back({id, 1.0f});
  EXPECT_TRUE(ValidateSamplingParams(many, 1 << 20).ok());
  many.logit_bias.push_back({kMaxLogitBias, 1.0f});
  EXPECT_EQ(ValidateSamplingParams(many, 1 << 20).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace vivarium::engine
