// The sampler's meaning once more: slow, in double precision, with a full sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include "engine/runtime/sampling_params.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

// The probability of each id; with temperature 0 all of it is the best id's.
inline std::vector<double> OracleDistribution(std::span<const float> raw,
                                              const SamplingParams& params,
                                              std::span<const TranscriptToken> recent = {},
                                              std::span<const int32_t> banned = {}) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const size_t n = raw.size();
  std::vector<double> logits(raw.begin(), raw.end());
  for (const auto& [id, bias] : params.logit_bias) logits[id] += bias;
  std::map<int32_t, int> seen, generated;
  for (const TranscriptToken& token : recent) {
    ++seen[token.id];
    if (token.is_output) ++generated[token.id];
  }
  for (const auto& [id, count] : seen) {
    double& logit = logits[id];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  }
  for (const auto& [id, count] : generated) {
    logits[id] -= params.presence_penalty + double{params.frequency_penalty} * count;
  }
  for (const int32_t id : banned) logits[id] = kMinusInfinity;

  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(n, 0.0);
  if (params.temperature == 0.0f) {
    p[order[0]] = 1.0;
    return p;
  }
  size_t kept = n;
  if (params.top_k > 0) kept = std::min<size_t>(kept, params.top_k);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    p[order[i]] = std::exp((logits[order[i]] - logits[order[0]]) / params.temperature);
    total += p[order[i]];
  }
  double mass = 0;
  for (size_t i = 0; i < n; ++i) {
    // An id is kept while those before it don't reach top_p.
    const bool in_top_p = params.top_p == 1.0f || mass < params.top_p * total;
    const bool keep = i < kept && in_top_p && p[order[i]] >= params.min_p;
    if (i < kept) mass += p[order[i]];
    if (!keep) p[order[i]] = 0.0;
  }
  total = 0;
  for (const double value : p) total += value;
  for (double& value : p) value /= total;
  return p;
}

}  // namespace vivarium::engine
