// Damaged requests and records: parsed or refused, never a crash. Fixed seeds.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

#include "server/convert.h"
#include "server/replay.h"

namespace vivarium::server {
namespace {

constexpr int kNumMutations = 10'000;

RequestLimits Limits() {
  RequestLimits limits;
  limits.vocab_size = 1000;
  limits.default_max_tokens = 256;
  limits.max_tokens = 1 << 20;
  limits.max_prompt_tokens = 1 << 20;
  return limits;
}

v1::GenerateRequest FullRequest() {
  v1::GenerateRequest request;
  request.set_state_id("st_01m867a56x1sb1dt7kahw1sxav");
  request.set_session("session");
  for (int i = 0; i < 20; ++i) request.mutable_token_ids()->add_ids(i);
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(0.5f);
  sampling->set_top_k(4);
  sampling->set_top_p(0.5f);
  sampling->set_min_p(0.1f);
  sampling->set_repetition_penalty(1.1f);
  sampling->set_seed(7);
  sampling->set_logprobs(3);
  (*sampling->mutable_logit_bias())[5] = 1.5f;
  request.mutable_stops()->add_strings("stop");
  request.mutable_stops()->add_token_ids(9);
  request.set_max_tokens(10);
  request.set_min_tokens(2);
  request.mutable_save()->set_every_tokens(32);
  request.mutable_ttl()->set_seconds(3600);
  (*request.mutable_labels())["key"] = "value";
  request.set_request_id("request");
  return request;
}

// One to four changes: bits, bytes, cuts, doubled parts.
std::string Mutate(std::string bytes, std::mt19937_64& random) {
  for (uint64_t n = 1 + random() % 4; n > 0 && !bytes.empty(); --n) {
    const size_t at = random() % bytes.size();
    switch (random() % 4) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random());
        break;
      case 2:
        bytes.erase(at, 1 + random() % 8);
        break;
      default:
        bytes.insert(at, bytes.substr(random() % bytes.size(), 1 + random() % 16));
    }
  }
  return bytes;
}

TEST(RequestFuzzTest, WhatIsAcceptedIsWithinItsBounds) {
  std::mt19937_64 random(1);
  const std::string bytes = FullRequest().SerializeAsString();
  ASSERT_TRUE(ParseGenerate(FullRequest(), Limits()).ok());
  int num_accepted = 0;
  int num_refused = 0;
  for (int i = 0; i < kNumMutations; ++i) {
    v1::GenerateRequest request;
    if (!request.ParsePartialFromString(Mutate(bytes, random))) continue;
    const auto params = ParseGenerate(request, Limits());
    if (!params.ok()) {
      ++num_refused;
      EXPECT_TRUE(absl::IsInvalidArgument(params.status())) << params.status();
      continue;
    }
    ++num_accepted;
    EXPECT_LE(params->max_tokens, 1u << 20);
    EXPECT_LE(params->min_tokens, params->max_tokens);
    EXPECT_LE(params->num_top_logprobs, engine::kMaxTopLogprobs);
    EXPECT_TRUE(params->save.every_tokens == 0 || params->save.every_tokens >= 16);
    EXPECT_FALSE(std::isnan(params->sampling.temperature.value_or(0)));
    for (const int32_t id : params->input.token_ids) {
      ASSERT_GE(id, 0);
      ASSERT_LT(id, 1000);
    }
  }
  EXPECT_GT(num_accepted, 100);  // the mutations reach behind the first check
  EXPECT_GT(num_refused, 100);
}

TEST(RequestFuzzTest, DamagedRecordsOfFinishedRequests) {
  std::mt19937_64 random(2);
  ResultRecorder recorder;
  v1::GenerateResponse started;
  started.mutable_started()->set_reuse_explanation("nothing reused");
  recorder.Add(started);
  for (int i = 0; i < 20; ++i) {
    recorder.AddToken({i, "word ", engine::TokenLogprob{i, -1.0f}, {{i, -1.0f}, {i + 1, -2.0f}}});
  }
  v1::Finished finished;
  finished.set_reason(v1::LENGTH);
  finished.mutable_state()->set_id("st_01m867a56x1sb1dt7kahw1sxav");
  const std::string bytes = recorder.Encode(finished);
  ASSERT_TRUE(DecodeResult(bytes).ok());
  for (int i = 0; i < kNumMutations; ++i) {
    const auto messages = DecodeResult(Mutate(bytes, random));
    if (messages.ok()) {
      EXPECT_TRUE(messages->back().has_finished());
    }
  }
}

}  // namespace
}  // namespace vivarium::server
