// The passes of SampleTokens over one row of logits, over whichever sampling_lanes_*.h the
// including file chose.
#pragma once

#include <cstdint>

#include "kernels/cpu/op_table.h"

namespace vivarium::kernels {
namespace {

// `count` (1 .. 16) logits, the last one repeated in the lanes that are left.
inline Vec LoadLogits(const float* logits, int64_t count) {
  if (count >= kLanes) return Load(logits);
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = logits[i < count ? i : count - 1];
  return Load(lanes);
}
inline uint32_t LanesBelow(int64_t count) { return count >= kLanes ? 0xffffu : (1u << count) - 1u; }

LogitRange RangeOfLogits(const float* logits, int64_t count) {
  Vec max = Set(logits[0]), min = Set(logits[0]);
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadLogits(logits + i, count - i);
    bad |= LanesNotBelow(v, __builtin_huge_valf());
    max = Max(v, max);
    min = Min(v, min);
  }
  float maxima[kLanes], minima[kLanes];
  Store(maxima, max);
  Store(minima, min);
  LogitRange range = {maxima[0], minima[0], bad != 0};
  for (int lane = 1; lane < kLanes; ++lane) {
    if (maxima[lane] > range.max) range.max = maxima[lane];
    if (minima[lane] < range.min) range.min = minima[lane];
  }
  return range;
}

int64_t FindLogit(const float* logits, int64_t count, float logit) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const uint32_t lanes = LanesEqual(LoadLogits(logits + i, count - i), logit);
    if (lanes != 0) return i + __builtin_ctz(lanes);
  }
  return count;
}

int64_t FindNthOrdered(const float* logits, int64_t count, uint32_t ordered, uint64_t n) {
  for (int64_t i = 0; i < count; i += kLanes) {
    uint32_t lanes = LanesWithin(OrdersOf(LoadLogits(logits + i, count - i)), ordered, ordered) &
                     LanesBelow(count - i);
    for (; lanes != 0; lanes &= lanes - 1) {
      if (n-- == 0) return i + __builtin_ctz(lanes);
    }
  }
  return count;
}

// Lanes at ids id .. id + 15 that pass the cut.
inline uint32_t LanesThatPass(const Orders& orders, const WeightPass& pass, int64_t id) {
  uint32_t lanes = LanesWithin(orders, pass.cut_low, 0xffffffffu);
  const int64_t num_ties_allowed = int64_t{pass.cut_last_tied_id} + 1 - id;
  if (lanes != 0 && num_ties_allowed < kLanes) {
    const uint32_t tied = LanesWithin(orders, pass.cut_low, pass.cut_low);
    lanes &= ~tied | (num_ties_allowed > 0 ? LanesBelow(num_ties_allowed) : 0u);
  }
  return lanes;
}

uint64_t SumWeights(const WeightPass& pass, int64_t begin, int64_t end) {
  const Vec minus_max = Set(-pass.max_logit), scale = Set(pass.scale);
  Weights sum = NoWeights();
  for (int64_t id = begin; id < end; id += kLanes) {
    const Vec logits = LoadLogits(pass.logits + id, end - id);
    uint32_t lanes = LanesBelow(end - id);
    if (pass.cut_low != 0) {
      lanes &= LanesThatPass(OrdersOf(logits), pass, id);
      if (lanes == 0) continue;
    }
    sum = AddWeights(sum, WeightsOf(Mul(Add(logits, minus_max), scale)), lanes, pass.min_weight);
  }
  return TotalOf(sum);
}

void CountByOrder(const OrderHistogram& histogram) {
  const WeightPass& pass = *histogram.pass;
  const Vec minus_max = Set(-pass.max_logit), scale = Set(pass.scale);
  uint64_t* const histogram_bins = histogram.bins;
  uint32_t bins[kLanes];
  uint64_t weights[kLanes];
  for (int64_t id = 0; id < pass.num_ids; id += kLanes) {
    const Vec logits = LoadLogits(pass.logits + id, pass.num_ids - id);
    const Orders orders = OrdersOf(logits);
    uint32_t lanes = LanesWithin(orders, histogram.low, histogram.high) &
                     LanesBelow(pass.num_ids - id) & LanesThatPass(orders, pass, id);
    if (lanes == 0) continue;
    StoreBins(orders, histogram.high, histogram.shift, bins);
    if (!histogram.by_weight) {
      for (; lanes != 0; lanes &= lanes - 1) ++histogram_bins[bins[__builtin_ctz(lanes)]];
      continue;
    }
    StoreWeights(WeightsOf(Mul(Add(logits, minus_max), scale)), weights);
    if (lanes == 0xffffu) {
      for (int lane = 0; lane < kLanes; ++lane) histogram_bins[bins[lane]] += weights[lane];
    } else {
      for (; lanes != 0; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        histogram_bins[bins[lane]] += weights[lane];
      }
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
