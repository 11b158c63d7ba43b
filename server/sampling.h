// Which sampling is in force: the request's fields over the source state's or the defaults.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "engine/checkpoint/model_config.h"
#include "engine/runtime/sampling_params.h"

namespace vivarium::server {

// What a request says; absent fields are left to what is below.
struct SamplingOverrides {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::pair<int32_t, float>> logit_bias;  // sorted by id; empty = left to below
};

// generation_config.json's fields where it has them, else the neutral values. An explicit
// `do_sample: false` is greedy, whatever its temperature says.
engine::SamplingParams DefaultSampling(const engine::GenerationDefaults& defaults);

// Nothing new was said (`inherited` not null): as it was, seed included, so that a pause changes
// nothing. Else the defaults and `fresh_seed`, so that forks differ. Overrides win over both.
engine::SamplingParams ResolveSampling(const SamplingOverrides& overrides,
                                       const engine::GenerationDefaults& defaults,
                                       const engine::SamplingParams* inherited,
                                       uint64_t fresh_seed);

// From the operating system's entropy.
uint64_t FreshSeed();

}  // namespace vivarium::server
