#include "engine/runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/runtime/philox.h"
#include "engine/runtime/token_weight.h"

namespace vivarium::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMaxFinite = std::numeric_limits<float>::max();

float ClampFinite(float logit) { return std::clamp(logit, -kMaxFinite, kMaxFinite); }

// floor(random * total / 2^64): uniform in [0, total).
uint64_t ScaleRandom(uint64_t random, uint64_t total) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(random) * total) >> 64);
}

// fraction * total, rounded up, in [1, total]; `total` >= 1.
uint64_t MassAtLeast(float fraction, uint64_t total) {
  const double mass = std::ceil(static_cast<double>(fraction) * static_cast<double>(total));
  // 2^63 is the largest total, so the conversion is in range.
  return std::clamp<uint64_t>(static_cast<uint64_t>(mass), 1, total);
}

float MaxLogit(std::span<const float> logits) {
  // Independent lanes, so that the compiler vectorises; a maximum has no order to keep.
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -kInfinity);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
    }
  }
  for (; i < logits.size(); ++i) lanes[0] = std::max(lanes[0], logits[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

}  // namespace

uint64_t SelectionKey(float logit, int32_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);  // + 0: -0 equals +0
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | (0xFFFFFFFFu - static_cast<uint32_t>(id));
}

int32_t SelectedId(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key));
}

absl::Status CheckLogits(std::span<const float> logits, uint64_t position) {
  uint32_t num_bad = 0;
  for (const float logit : logits) num_bad += !(logit < kInfinity);
  if (num_bad == 0) return absl::OkStatus();
  const auto bad =
      std::find_if(logits.begin(), logits.end(), [](float logit) { return !(logit < kInfinity); });
  return absl::InternalError(absl::StrCat("the logit of token id ", bad - logits.begin(), " is ",
                                          *bad, " at position ", position, ", must be finite"));
}

int32_t ArgMax(std::span<const float> logits) {
  const float max_logit = MaxLogit(logits);
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max_logit) - logits.begin());
}

Sampler::Sampler(int64_t num_ids)
    : num_ids_(num_ids),
      logits_(num_ids),
      weights_(num_ids),
      prompt_counts_(num_ids),
      output_counts_(num_ids) {
  assert(num_ids >= 1 && num_ids <= kMaxWeightedIds);
}

absl::StatusOr<int32_t> Sampler::Sample(const SampleRequest& request) {
  assert(static_cast<int64_t>(request.logits.size()) == num_ids_);
  if (absl::Status status = CheckLogits(request.logits, request.position); !status.ok()) {
    return status;
  }
  std::copy(request.logits.begin(), request.logits.end(), logits_.begin());
  for (const auto& [id, bias] : request.params.logit_bias) {
    if (logits_[id] != -kInfinity) logits_[id] = ClampFinite(logits_[id] + bias);
  }
  ApplyPenalties(request);
  for (const int32_t id : request.banned_ids) logits_[id] = -kInfinity;

  const int32_t best_id = ArgMax(logits_);
  const float max_logit = logits_[best_id];
  if (max_logit == -kInfinity) {
    return absl::InternalError(absl::StrCat("no token can be sampled at position ",
                                            request.position, ": all ", num_ids_,
                                            " logits are -infinity or banned"));
  }
  return request.params.temperature == 0.0f ? best_id : Draw(request, max_logit);
}

void Sampler::ApplyPenalties(const SampleRequest& request) {
  const SamplingParams& params = request.params;
  if (params.repetition_penalty == 1.0f && params.presence_penalty == 0.0f &&
      params.frequency_penalty == 0.0f) {
    return;
  }
  const auto is_usable = [this](int32_t id) { return id >= 0 && id < num_ids_; };
  for (const TranscriptToken& token : request.recent) {
    if (is_usable(token.id)) ++(token.is_output ? output_counts_ : prompt_counts_)[token.id];
  }
  // The counts are zeroed at an id's first visit, so that each id is penalised once.
  for (const TranscriptToken& token : request.recent) {
    if (!is_usable(token.id)) continue;
    uint32_t& output_count = output_counts_[token.id];
    uint32_t& prompt_count = prompt_counts_[token.id];
    if (output_count + prompt_count == 0) continue;
    float& logit = logits_[token.id];
    if (logit != -kInfinity) {
      logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      logit = ClampFinite(logit);
      if (output_count > 0) {
        logit = ClampFinite(logit - params.presence_penalty);
        logit = ClampFinite(logit - params.frequency_penalty * static_cast<float>(output_count));
      }
    }
    output_count = prompt_count = 0;
  }
}

int32_t Sampler::Draw(const SampleRequest& request, float max_logit) {
  const SamplingParams& params = request.params;
  // A tiny temperature would overflow to infinity, and 0 * infinity is NaN.
  const float scale = std::min(kLog2E / params.temperature, kMaxFinite);
  const uint64_t random = RandomBits(params.seed, request.position);
  const bool has_top_k = params.top_k > 0 && params.top_k < num_ids_;

  uint64_t total = 0;  // of what top_p and min_p select from
  if (has_top_k) {
    SelectTopK(params.top_k);
    for (Candidate& candidate : candidates_) {
      candidate.weight = TokenWeight((logits_[SelectedId(candidate.key)] - max_logit) * scale);
      total += candidate.weight;
    }
  } else {
    for (int64_t id = 0; id < num_ids_; ++id) {
      weights_[id] = TokenWeight((logits_[id] - max_logit) * scale);
      total += weights_[id];
    }
    if (params.top_p == 1.0f && params.min_p == 0.0f) {
      uint64_t left = ScaleRandom(random, total);
      int32_t id = 0;
      while (left >= weights_[id]) left -= weights_[id++];
      return id;
    }
    SelectHeavy(params, total);
  }
  if (params.top_p < 1.0f) SelectTopP(MassAtLeast(params.top_p, total));
  SelectMinWeight(MassAtLeast(params.min_p, kWeightOne));

  // In the order of ids, which does not depend on how the filters left the candidates.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return SelectedId(a.key) < SelectedId(b.key);
  });
  uint64_t kept = 0;
  for (const Candidate& candidate : candidates_) kept += candidate.weight;
  uint64_t left = ScaleRandom(random, kept);
  size_t i = 0;
  while (left >= candidates_[i].weight) left -= candidates_[i++].weight;
  return SelectedId(candidates_[i].key);
}

// Keeps a buffer of at most 2k candidates and a threshold that rises each time it is full: few ids
// pass it, so this is about one comparison per id.
void Sampler::SelectTopK(size_t k) {
  const auto by_key = [](const Candidate& a, const Candidate& b) { return a.key > b.key; };
  uint64_t threshold = 0;
  candidates_.clear();
  for (int64_t id = 0; id < num_ids_; ++id) {
    const uint64_t key = SelectionKey(logits_[id], static_cast<int32_t>(id));
    if (key < threshold) continue;
    candidates_.push_back({key, 0});
    if (candidates_.size() == 2 * k) {
      std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(),
                       by_key);
      candidates_.resize(k);
      threshold = candidates_[k - 1].key;
    }
  }
  if (candidates_.size() <= k) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(), by_key);
  candidates_.resize(k);
}

// Leaves out what min_p will not keep, and what top_p can't need: n ids of weight (1 - top_p) *
// total / n or less weigh at most (1 - top_p) * total together, so the heavier ones reach top_p
// alone.
void Sampler::SelectHeavy(const SamplingParams& params, uint64_t total) {
  const double spare = (1.0 - static_cast<double>(params.top_p)) * static_cast<double>(total);
  const uint64_t useless = static_cast<uint64_t>(spare / static_cast<double>(num_ids_));
  const uint64_t min_weight = std::max(MassAtLeast(params.min_p, kWeightOne), useless + 1);
  candidates_.clear();
  for (int64_t id = 0; id < num_ids_; ++id) {
    if (weights_[id] < min_weight) continue;
    candidates_.push_back({SelectionKey(logits_[id], static_cast<int32_t>(id)), weights_[id]});
  }
}

// Quickselect by mass: each round looks only at the half in which the boundary lies.
void Sampler::SelectTopP(uint64_t mass_wanted) {
  constexpr std::ptrdiff_t kSortedSize = 32;
  const auto by_key = [](const Candidate& a, const Candidate& b) { return a.key > b.key; };
  auto low = candidates_.begin();
  auto high = candidates_.end();
  while (high - low > kSortedSize) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, by_key);
    uint64_t mass = 0;
    for (auto it = low; it != middle; ++it) mass += it->weight;
    if (mass >= mass_wanted) {
      high = middle;
    } else {
      mass_wanted -= mass;
      low = middle;
    }
  }
  std::sort(low, high, by_key);
  auto end = low;
  while (end != high) {
    const uint64_t weight = (end++)->weight;
    if (weight >= mass_wanted) break;
    mass_wanted -= weight;
  }
  candidates_.erase(end, candidates_.end());
}

void Sampler::SelectMinWeight(uint64_t min_weight) {
  std::erase_if(candidates_,
                [min_weight](const Candidate& candidate) { return candidate.weight < min_weight; });
}

}  // namespace vivarium::engine
