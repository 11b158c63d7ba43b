// Sixteen orders and weights of logits (sampling_math.h) in plain C++: the reference for
// sampling_lanes_avx2.h and sampling_lanes_avx512.h. Masks hold lane i in bit i.
#pragma once

#include <cstdint>

#include "kernels/sampling_math.h"

namespace vivarium::kernels {
namespace {

struct Orders {
  uint32_t lane[kLanes];
};
struct Weights {
  uint64_t lane[kLanes];
};

inline uint32_t LanesEqual(Vec v, float value) {
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i) lanes |= static_cast<uint32_t>(v.lane[i] == value) << i;
  return lanes;
}
// Lanes that are not below `limit`: NaN is not.
inline uint32_t LanesNotBelow(Vec v, float limit) {
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i) lanes |= static_cast<uint32_t>(!(v.lane[i] < limit)) << i;
  return lanes;
}

inline Orders OrdersOf(Vec logits) {
  Orders orders;
  for (int i = 0; i < kLanes; ++i) orders.lane[i] = OrderedLogit(logits.lane[i]);
  return orders;
}
// Lanes in [low, high].
inline uint32_t LanesWithin(const Orders& orders, uint32_t low, uint32_t high) {
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i) {
    lanes |= static_cast<uint32_t>(orders.lane[i] >= low && orders.lane[i] <= high) << i;
  }
  return lanes;
}
// bins[i] = (high - order) >> shift, modulo 2^32 where an order is above `high`.
inline void StoreBins(const Orders& orders, uint32_t high, int32_t shift, uint32_t* bins) {
  for (int i = 0; i < kLanes; ++i) bins[i] = (high - orders.lane[i]) >> shift;
}

inline Weights NoWeights() { return {}; }
inline Weights WeightsOf(Vec z) {
  Weights weights;
  for (int i = 0; i < kLanes; ++i) weights.lane[i] = TokenWeight(z.lane[i]);
  return weights;
}
// sum + the weights of `lanes` that are at least min_weight (below 2^63).
inline Weights AddWeights(Weights sum, const Weights& weights, uint32_t lanes,
                          uint64_t min_weight) {
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1u) != 0 && weights.lane[i] >= min_weight) sum.lane[i] += weights.lane[i];
  }
  return sum;
}
inline uint64_t TotalOf(const Weights& weights) {
  uint64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += weights.lane[i];
  return total;
}
inline void StoreWeights(const Weights& weights, uint64_t* out) {
  for (int i = 0; i < kLanes; ++i) out[i] = weights.lane[i];
}

}  // namespace
}  // namespace vivarium::kernels
