// What one instruction-set path offers: the inner loops of the ops, one table of functions per
// path.
//
// The table's functions are compiled with that path's flags; everything around them (argument
// checks, packing, threads) is compiled once, for the baseline. So this header, and whatever the
// isa_*.cc files include, holds plain data only: no inline function may be shared between paths.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace vivarium::kernels {

// Activations along K that share a scale.
inline constexpr int kActivationGroup = 128;

// One column panel of a matrix product: `out[t, 0..num_columns)` for all t.
struct LinearPanel {
  const void* x;        // f32 [num_tokens, x_stride]; bf16 when paired, int8 when in fours
  int64_t x_stride;     // in elements
  const void* weight;   // this panel, packed
  int64_t depth;        // K: rows of the panel; pairs or fours of rows
  const float* bias;    // [num_columns]; may be null
  const float* scales;  // [num_columns], of int8 weights; null: 1
  // Of int8 activations, per run of kActivationGroup along K: x = x_scales * int8, and what the
  // weights' offset adds to a sum, negated. [num_tokens, num_groups]
  const float* x_scales;
  const int32_t* x_offsets;
  int64_t num_groups;
  float* out;  // [num_tokens, out_stride]
  int64_t out_stride;
  int64_t num_tokens;
  int32_t num_columns;  // 1 .. 16 * panel_vectors
};

// The largest and smallest of some logits; has_bad: one is NaN or +infinity, and the rest means
// nothing.
struct LogitRange {
  float max, min;
  bool has_bad;
};

// The weights (sampling_math.h) of the logits that pass a cut and weigh enough.
struct WeightPass {
  const float* logits;
  int64_t num_ids;
  float max_logit, scale;
  uint32_t cut_low;  // LogitCut
  int32_t cut_last_tied_id;
  uint64_t min_weight;
};

// bins[(high - order) >> shift] += weight (or 1) over the logits that pass and whose order lies in
// [low, high].
struct OrderHistogram {
  const WeightPass* pass;  // its min_weight is not looked at
  uint32_t low, high;
  int32_t shift;
  bool by_weight;
  uint64_t* bins;  // [((high - low) >> shift) + 1]
};

// Packed weight matrix: panels of 16 * panel_vectors output columns (rows of W); the last one has
// only as many vectors as it needs. Inside a panel, k outermost:
//   f32:            [K][vectors][16]
//   bf16:           [K][vectors][16]
//   bf16, paired:   [ceil(K/2)][vectors][16][2], an odd K padded with zeros
//   int8:           [K][vectors][16]
//   int8, in fours: [ceil(K/4)][vectors][16][4], each plus 128, K padded with 128
// A panel's columns beyond W's rows are zeros.
struct OpTable {
  const char* isa;
  int32_t panel_vectors;
  // True when bf16 weights are paired: linear_bf16 takes activations rounded by round_to_bf16.
  bool paired_bf16;

  void (*linear_f32)(const LinearPanel& panel);
  void (*linear_bf16)(const LinearPanel& panel);
  void (*linear_int8)(const LinearPanel& panel);
  // dst[0..padded_count) = src[0..count) rounded to nearest even, then zeros. Null unless paired.
  void (*round_to_bf16)(const float* src, int64_t count, uint16_t* dst, int64_t padded_count);
  // A row of activations for int8 weights in fours: dst[0..padded_count) and, per group, its scale
  // and offset. A group that holds NaN or infinity gets the scale NaN. Null: linear_int8 takes f32
  // activations and weights that are not in fours.
  void (*quantize_row)(const float* src, int64_t count, int8_t* dst, int64_t padded_count,
                       float* scales, int32_t* offsets);

  // The ops of ops.h on a range: of tokens, of channels (multiples of 16 but for the end), of
  // tiles.
  void (*rms_norm)(const RmsNormParams& params, int64_t begin, int64_t end);
  void (*causal_conv1d)(const CausalConv1dParams& params, int64_t begin, int64_t end);
  void (*selective_scan)(const SelectiveScanParams& params, int64_t begin, int64_t end);

  // The passes of SampleTokens (cpu/sample_tokens.cc) over one row.
  LogitRange (*logit_range)(const float* logits, int64_t count);
  // The first id whose logit equals `logit`; `count` when there is none.
  int64_t (*find_logit)(const float* logits, int64_t count, float logit);
  // The id of the n-th (from 0) logit whose order is `ordered`; there are more than n.
  int64_t (*find_nth_ordered)(const float* logits, int64_t count, uint32_t ordered, uint64_t n);
  uint64_t (*sum_weights)(const WeightPass& pass, int64_t begin, int64_t end);
  void (*count_by_order)(const OrderHistogram& histogram);
};

// The paths. Null when not compiled for this processor family.
const OpTable* PortableOps();
const OpTable* Avx2Ops();
const OpTable* Avx512Ops();

}  // namespace vivarium::kernels
