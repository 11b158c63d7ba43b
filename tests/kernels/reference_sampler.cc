#include "tests/kernels/reference_sampler.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "kernels/sampling_math.h"

namespace vivarium::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
float MaxLogit(std::span<const float> logits) {
  return *std::max_element(logits.begin(), logits.end());
}

int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), MaxLogit(logits)) -
                              logits.begin());
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

ReferenceSampler::ReferenceSampler(int64_t num_ids)
    : num_ids_(num_ids),
      logits_(num_ids),
      weights_(num_ids),
      prompt_counts_(num_ids),
      output_counts_(num_ids) {
  assert(num_ids >= 1 && num_ids <= kMaxSampledIds);
}

SampledToken ReferenceSampler::Sample(const ReferenceRequest& request) {
  assert(static_cast<int64_t>(request.logits.size()) == num_ids_);
  for (int32_t id = 0; id < num_ids_; ++id) {
    const float logit = request.logits[id];
    if (!(logit < kInfinity)) return {id, SampleStatus::kBadLogit, logit, 0.0f};
  }
  std::copy(request.logits.begin(), request.logits.end(), logits_.begin());
  for (const auto& [id, bias] : request.bias) {
    if (logits_[id] != -kInfinity) logits_[id] = ClampFinite(logits_[id] + bias);
  }
  ApplyPenalties(request);
  for (const int32_t id : request.banned_ids) logits_[id] = -kInfinity;

  const int32_t best_id = ArgMax(logits_);
  const float max_logit = logits_[best_id];
  if (max_logit == -kInfinity) return {-1, SampleStatus::kNothingLeft, 0.0f, 0.0f};
  const bool is_greedy = request.row.temperature == 0.0f;
  return {is_greedy ? best_id : Draw(request.row, max_logit), SampleStatus::kOk, 0.0f, 0.0f};
}

void ReferenceSampler::ApplyPenalties(const ReferenceRequest& request) {
  const SampleRow& params = request.row;
  if (params.repetition_penalty == 1.0f && params.presence_penalty == 0.0f &&
      params.frequency_penalty == 0.0f) {
    return;
  }
  const auto is_usable = [this](int32_t id) { return id >= 0 && id < num_ids_; };
  for (const RecentToken& token : request.recent) {
    if (is_usable(token.id)) ++(token.is_output ? output_counts_ : prompt_counts_)[token.id];
  }
  // The counts are zeroed at an id's first visit, so that each id is penalised once.
  for (const RecentToken& token : request.recent) {
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

int32_t ReferenceSampler::Draw(const SampleRow& params, float max_logit) {
  const float scale = WeightScale(params.temperature);
  const uint64_t random = RandomBits(params.seed, params.position);
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
void ReferenceSampler::SelectTopK(size_t k) {
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
void ReferenceSampler::SelectHeavy(const SampleRow& params, uint64_t total) {
  const double spare = (1.0 - static_cast<double>(params.top_p)) * static_cast<double>(total);
  const uint64_t useless = static_cast<uint64_t>(spare / static_cast<double>(num_ids_));
  // (A top_p so small that 1 - top_p is 1 makes everything useless but the largest.)
  const uint64_t min_weight =
      std::clamp(useless + 1, MassAtLeast(params.min_p, kWeightOne), kWeightOne);
  candidates_.clear();
  for (int64_t id = 0; id < num_ids_; ++id) {
    if (weights_[id] < min_weight) continue;
    candidates_.push_back({SelectionKey(logits_[id], static_cast<int32_t>(id)), weights_[id]});
  }
}

// Quickselect by mass: each round looks only at the half in which the boundary lies.
void ReferenceSampler::SelectTopP(uint64_t mass_wanted) {
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

void ReferenceSampler::SelectMinWeight(uint64_t min_weight) {
  std::erase_if(candidates_,
                [min_weight](const Candidate& candidate) { return candidate.weight < min_weight; });
}

std::vector<LogitEdit> EditsOf(const ReferenceRequest& request) {
  std::map<int32_t, LogitEdit> edits;
  const auto edit_of = [&](int32_t id) -> LogitEdit& {
    return edits.try_emplace(id, LogitEdit{id, 0.0f, 0, 0}).first->second;
  };
  const SampleRow& row = request.row;
  for (const auto& [id, bias] : request.bias) edit_of(id).bias = bias;
  const bool is_penalised = row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
                            row.frequency_penalty != 0.0f;
  for (const RecentToken& token : request.recent) {
    const bool is_usable = token.id >= 0 && token.id < static_cast<int64_t>(request.logits.size());
    if (!is_penalised || !is_usable) continue;
    edit_of(token.id).flags |= LogitEdit::kRecent;
    edit_of(token.id).num_outputs += token.is_output ? 1 : 0;
  }
  for (const int32_t id : request.banned_ids) edit_of(id).flags |= LogitEdit::kBanned;
  std::vector<LogitEdit> list;
  for (const auto& [id, edit] : edits) list.push_back(edit);
  return list;
}

ReferenceLogSoftmax::ReferenceLogSoftmax(std::span<const float> logits) : logits_(logits) {
  const float max_logit = MaxLogit(logits);
  uint64_t total = 0;
  for (const float logit : logits) total += TokenWeight((logit - max_logit) * kWeightLog2E);
  log_sum_ = LogSumOf(max_logit, total);
}

float ReferenceLogSoftmax::operator()(int32_t id) const {
  return static_cast<float>(static_cast<double>(logits_[id]) - log_sum_);
}

std::vector<RankedToken> ReferenceLogSoftmax::Top(int32_t count) const {
  std::vector<uint64_t> keys;
  for (size_t id = 0; id < logits_.size(); ++id) {
    keys.push_back(SelectionKey(logits_[id], static_cast<int32_t>(id)));
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  keys.resize(std::min<size_t>(keys.size(), count));
  std::vector<RankedToken> top;
  for (const uint64_t key : keys) top.push_back({SelectedId(key), (*this)(SelectedId(key))});
  return top;
}

}  // namespace vivarium::kernels
