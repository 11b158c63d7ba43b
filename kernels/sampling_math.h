// The arithmetic of sampling, one for every backend: what decides a token has the same bits
// everywhere.
//
// Softmax needs an exponential and a sum, and both are where backends and libraries differ in the
// last bit. Here the exponential is spelled out in IEEE single-precision additions and products (no
// contraction, no library call) and the sum is one of integers, which has no order. So the same
// logits give the same weights, the same sums, the same token and the same log-probability.
//
// Every function has internal linkage: files for different instruction sets share no code.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/ops.h"

#if defined(__CUDACC__)
#define VIVARIUM_MATH static __host__ __device__ __forceinline__
#else
#define VIVARIUM_MATH static inline
#endif

namespace vivarium::kernels {

// ------ IEEE operations that no compiler may fuse

#if defined(__CUDA_ARCH__)
VIVARIUM_MATH float SumOf(float a, float b) { return __fadd_rn(a, b); }
VIVARIUM_MATH float ProductOf(float a, float b) { return __fmul_rn(a, b); }
VIVARIUM_MATH float QuotientOf(float a, float b) { return __fdiv_rn(a, b); }
VIVARIUM_MATH double SumOf(double a, double b) { return __dadd_rn(a, b); }
VIVARIUM_MATH double ProductOf(double a, double b) { return __dmul_rn(a, b); }
VIVARIUM_MATH double QuotientOf(double a, double b) { return __ddiv_rn(a, b); }
#else
VIVARIUM_MATH float SumOf(float a, float b) { return a + b; }
VIVARIUM_MATH float ProductOf(float a, float b) { return a * b; }
VIVARIUM_MATH float QuotientOf(float a, float b) { return a / b; }
VIVARIUM_MATH double SumOf(double a, double b) { return a + b; }
VIVARIUM_MATH double ProductOf(double a, double b) { return a * b; }
VIVARIUM_MATH double QuotientOf(double a, double b) { return a / b; }
#endif

VIVARIUM_MATH uint32_t BitsOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
VIVARIUM_MATH float FloatOf(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// ------ random numbers

// Philox4x32-10: a counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). A number depends on (key, counter) alone, so a stream's randomness depends on
// its seed and position and on nothing that happened before or beside it.
struct PhiloxBlock {
  uint32_t words[4];
};

// Ten rounds over `counter` under the key (key0, key1).
VIVARIUM_MATH PhiloxBlock Philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  constexpr int kNumRounds = 10;
  for (int round = 0; round < kNumRounds; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.words[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.words[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.words[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.words[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9;  // the golden ratio
    key1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

// The 64 random bits of the token at absolute index `position` of a thread with this seed.
VIVARIUM_MATH uint64_t RandomBits(uint64_t seed, uint64_t position) {
  const PhiloxBlock block =
      Philox4x32({{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0}},
                 static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return block.words[0] | (uint64_t{block.words[1]} << 32);
}

// floor(random * total / 2^64): uniform in [0, total).
VIVARIUM_MATH uint64_t ScaleRandom(uint64_t random, uint64_t total) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(random, total);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(random) * total) >> 64);
#endif
}

// ------ weights

// Weights are multiples of 2^-42. The largest logit weighs exactly 2^42, so up to 2^21 ids sum to
// at most 2^63.
constexpr int kWeightFractionBits = 42;
constexpr uint64_t kWeightOne = uint64_t{1} << kWeightFractionBits;
constexpr float kWeightLog2E = 1.44269504f;
// 2^z for z in [0, 1], 1 at 0: minimax polynomial of degree 6, relative error 2.1e-9; the highest
// power's coefficient first.
#define VIVARIUM_WEIGHT_POLYNOMIAL \
  0.000216129149f, 0.0012467847f, 0.00967545155f, 0.0554852821f, 0.240229309f, 0.693147063f, 1.0f
constexpr uint32_t kFloatImplicitOne = 1u << 23;
constexpr float kMaxFiniteFloat = 3.402823466e+38f;

// 2^z in units of 2^-42, rounded down, for z <= 0 (-infinity included); relative error below 1.1e-7
// plus the rounding. Exactly kWeightOne at 0, below it elsewhere, and never rising as z falls.
VIVARIUM_MATH uint64_t TokenWeight(float z) {
  if (!(z > -static_cast<float>(kWeightFractionBits + 1))) return 0;
  int32_t whole = static_cast<int32_t>(z);
  whole -= z < static_cast<float>(whole) ? 1 : 0;        // floor
  const float f = SumOf(z, -static_cast<float>(whole));  // [0, 1]: 1 only by rounding
  const float coefficients[] = {VIVARIUM_WEIGHT_POLYNOMIAL};
  float p = coefficients[0];
  for (int i = 1; i < 7; ++i) p = SumOf(ProductOf(p, f), coefficients[i]);
  const uint32_t mantissa = p < 2.0f ? (BitsOf(p) & (kFloatImplicitOne - 1)) | kFloatImplicitOne
                                     : 2 * kFloatImplicitOne - 1;
  return (uint64_t{mantissa} << (kWeightFractionBits - 23)) >> -whole;
}

// log2(e) / temperature, so that a weight is TokenWeight((logit - largest) * scale). A tiny
// temperature would overflow to infinity, and 0 * infinity is NaN.
VIVARIUM_MATH float WeightScale(float temperature) {
  const float scale = QuotientOf(kWeightLog2E, temperature);
  return scale < kMaxFiniteFloat ? scale : kMaxFiniteFloat;
}

VIVARIUM_MATH uint64_t LogitWeight(float logit, float max_logit, float scale) {
  return TokenWeight(ProductOf(SumOf(logit, -max_logit), scale));
}

// fraction * total, rounded up, in [1, total]; 1 <= total <= 2^63, 0 <= fraction <= 1.
VIVARIUM_MATH uint64_t MassAtLeast(float fraction, uint64_t total) {
  const double mass = ProductOf(static_cast<double>(fraction), static_cast<double>(total));
  auto rounded = static_cast<uint64_t>(mass);
  if (static_cast<double>(rounded) < mass) ++rounded;
  if (rounded < 1) return 1;
  return rounded < total ? rounded : total;
}

// ------ order

// Orders logits as unsigned integers; -0 equals +0. `logit` is not NaN.
VIVARIUM_MATH uint32_t OrderedLogit(float logit) {
  const uint32_t bits = BitsOf(SumOf(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
VIVARIUM_MATH float LogitOfOrdered(uint32_t ordered) {
  return FloatOf((ordered & 0x80000000u) != 0 ? ordered ^ 0x80000000u : ~ordered);
}

// Ids are chosen by (logit, lower id first): those that pass are the ones above `low`, and of those
// equal to it the ids up to last_tied_id. Everything passes low 0.
struct LogitCut {
  uint32_t low = 0;
  int32_t last_tied_id = 0x7fffffff;
};
VIVARIUM_MATH bool PassesCut(const LogitCut& cut, uint32_t ordered, int32_t id) {
  return ordered > cut.low || (ordered == cut.low && id <= cut.last_tied_id);
}

// At or below this in order, every weight is 0: the weight's exponent is under -43 there, whatever
// the roundings.
VIVARIUM_MATH uint32_t LowestWeighty(float max_logit, float scale) {
  const double width =
      QuotientOf(static_cast<double>(kWeightFractionBits + 2), static_cast<double>(scale));
  const double lowest = SumOf(static_cast<double>(max_logit), -width);
  if (!(lowest > -static_cast<double>(kMaxFiniteFloat))) return 0;
  return OrderedLogit(static_cast<float>(lowest)) - 1;
}

// ------ edits

VIVARIUM_MATH float ClampFinite(float logit) {
  if (logit > kMaxFiniteFloat) return kMaxFiniteFloat;
  return logit < -kMaxFiniteFloat ? -kMaxFiniteFloat : logit;
}

// `logit` after bias, penalties and ban: in this order. -infinity stays.
VIVARIUM_MATH float EditedLogit(float logit, const LogitEdit& edit, const SampleRow& row) {
  if ((edit.flags & LogitEdit::kBanned) != 0) return FloatOf(0xff800000u);
  if (logit < -kMaxFiniteFloat) return logit;
  logit = ClampFinite(SumOf(logit, edit.bias));
  if ((edit.flags & LogitEdit::kRecent) == 0) return logit;
  logit = logit > 0.0f ? QuotientOf(logit, row.repetition_penalty)
                       : ProductOf(logit, row.repetition_penalty);
  logit = ClampFinite(logit);
  if (edit.num_outputs == 0) return logit;
  logit = ClampFinite(SumOf(logit, -row.presence_penalty));
  return ClampFinite(
      SumOf(logit, -ProductOf(row.frequency_penalty, static_cast<float>(edit.num_outputs))));
}

// ------ log-probabilities

// The natural logarithm of a positive normal number to the last bit or two, spelled out in IEEE
// operations: a C library's may differ from machine to machine.
VIVARIUM_MATH double NaturalLog(double value) {
  constexpr double kLn2 = 0.693147180559945309417;
  constexpr double kSqrt2 = 1.41421356237309504880;
  constexpr int kMantissaBits = 52;
  constexpr uint64_t kMantissaMask = (uint64_t{1} << kMantissaBits) - 1;
  constexpr uint64_t kExponentBias = 1023;
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  int64_t exponent = static_cast<int64_t>(bits >> kMantissaBits) - int64_t{kExponentBias};
  bits = (bits & kMantissaMask) | (kExponentBias << kMantissaBits);
  double m;
  memcpy(&m, &bits, sizeof(m));
  if (m > kSqrt2) {  // into (sqrt(1/2), sqrt(2)]
    m = ProductOf(m, 0.5);
    ++exponent;
  }
  // ln(m) = 2 artanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716: the terms fall by 0.0295 each.
  const double s = QuotientOf(SumOf(m, -1.0), SumOf(m, 1.0));
  const double s2 = ProductOf(s, s);
  constexpr int kNumTerms = 12;
  double sum = 0.0;
  for (int i = kNumTerms - 1; i >= 0; --i) {
    sum = SumOf(ProductOf(sum, s2), QuotientOf(1.0, static_cast<double>(2 * i + 1)));
  }
  return SumOf(ProductOf(static_cast<double>(exponent), kLn2), ProductOf(ProductOf(2.0, s), sum));
}

// ln(sum exp(logit)), where `total` is the sum of LogitWeight(logit, max_logit, kWeightLog2E).
VIVARIUM_MATH double LogSumOf(float max_logit, uint64_t total) {
  const double sum = ProductOf(static_cast<double>(total), 1.0 / static_cast<double>(kWeightOne));
  return SumOf(static_cast<double>(max_logit), NaturalLog(sum));
}
VIVARIUM_MATH float LogprobOf(float logit, double log_sum) {
  return static_cast<float>(SumOf(static_cast<double>(logit), -log_sum));
}

}  // namespace vivarium::kernels
