#include "server/sampling.h"

#include <random>

namespace vivarium::server {

engine::SamplingParams DefaultSampling(const engine::GenerationDefaults& defaults) {
  engine::SamplingParams params;
  if (defaults.temperature) params.temperature = *defaults.temperature;
  if (defaults.top_k) params.top_k = *defaults.top_k;
  if (defaults.top_p) params.top_p = *defaults.top_p;
  if (defaults.repetition_penalty) params.repetition_penalty = *defaults.repetition_penalty;
  if (defaults.do_sample && !*defaults.do_sample) params.temperature = 0;
  return params;
}

engine::SamplingParams ResolveSampling(const SamplingOverrides& overrides,
                                       const engine::GenerationDefaults& defaults,
                                       const engine::SamplingParams* inherited,
                                       uint64_t fresh_seed) {
  engine::SamplingParams params = inherited ? *inherited : DefaultSampling(defaults);
  if (!inherited) params.seed = fresh_seed;
  if (overrides.temperature) params.temperature = *overrides.temperature;
  if (overrides.top_k) params.top_k = *overrides.top_k;
  if (overrides.top_p) params.top_p = *overrides.top_p;
  if (overrides.min_p) params.min_p = *overrides.min_p;
  if (overrides.repetition_penalty) params.repetition_penalty = *overrides.repetition_penalty;
  if (overrides.presence_penalty) params.presence_penalty = *overrides.presence_penalty;
  if (overrides.frequency_penalty) params.frequency_penalty = *overrides.frequency_penalty;
  if (overrides.seed) params.seed = *overrides.seed;
  if (!overrides.logit_bias.empty()) params.logit_bias = overrides.logit_bias;
  return params;
}

uint64_t FreshSeed() {
  std::random_device entropy;
  return (uint64_t{entropy()} << 32) | entropy();
}

}  // namespace vivarium::server
