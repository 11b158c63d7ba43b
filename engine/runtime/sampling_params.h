// SamplingParams: how the next token is chosen from the logits; part of a state, so that a resume
// goes on as it was.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace vivarium::engine {

// In the order in which they act: logit_bias, penalties, temperature, top_k, top_p, min_p.
// Penalties look at the recent-token window (kRecentTokenWindow tokens) of the stream:
//   repetition  (Keskar et al. 2019, CTRL): logit > 0 ? logit / r : logit * r, for each distinct
//               prompt or output token in the window;
//   presence    logit -= p, for each distinct output token in the window;
//   frequency   logit -= f * count, for output tokens in the window.
struct SamplingParams {
  float temperature = 1.0f;         // >= 0; 0 = greedy: the largest logit, ties to the lower id
  int32_t top_k = 0;                // >= 0; 0 = off
  float top_p = 1.0f;               // (0, 1]; Holtzman et al. 2019
  float min_p = 0.0f;               // [0, 1]: keep p >= min_p * max p; Nguyen et al. 2024
  float repetition_penalty = 1.0f;  // (0, 100]
  float presence_penalty = 0.0f;    // [-100, 100]
  float frequency_penalty = 0.0f;   // [-100, 100]
  uint64_t seed = 0;                // key of the counter RNG: random(seed, position)
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // sorted by id, distinct; |bias| <= 100

  bool operator==(const SamplingParams&) const = default;
};
inline constexpr int32_t kRecentTokenWindow = 1024;
inline constexpr int32_t kMaxLogitBias = 1024;
inline constexpr int32_t kMaxTopLogprobs = 20;
inline constexpr float kMaxTemperature = 100.0f;

// INVALID_ARGUMENT naming the field, its value and the legal range (NaN is never legal);
// `vocab_size` bounds the ids of logit_bias.
absl::Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size);

}  // namespace vivarium::engine
