// The ops: one params struct per op is its whole interface and its documentation.
//
// Conventions. All pointers are device memory of the Backend that runs the op, never null unless
// said so, owned by the caller, and must stay valid until the op is complete. Activations are f32,
// token-major [num_tokens, channels]; a `*_stride` is the distance between tokens in elements, so
// that an op can read a column slice of a wider matrix. No op writes outside the rows and columns
// named. Sizes are checked at the model's load; ops only assert them.
//
// Batches are flat ("packed varlen"): the rows of all sequences of one step one after the other,
// cut by Segments. The arithmetic of a row, and its order, never depends on what else is in the
// batch, on how a sequence was cut into segments, on its slot, or on the number of threads: bits
// agree.
//
// States live in a slot pool: `states` points at this layer's part of slot 0, slot s begins at
// states + s * slot_stride elements.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace vivarium::kernels {

class PackedMatrix;

inline constexpr int32_t kPadSlot = -1;
inline constexpr int32_t kPreviousSegment = -2;
// Channels per tile of the SSM state layout [ceil(d_inner/16)][d_state][16].
inline constexpr int32_t kChannelTile = 16;

// A run of consecutive tokens of one sequence: rows [token_begin, token_begin + num_tokens).
// num_tokens >= 1. Segments of one batch don't overlap.
//
// A chain: a segment with read_slot kPreviousSegment goes on from the state at the end of the
// segment before it in the array, whose rows end where its own begin; the state stays where it is
// (in registers). So a sequence's rows of one step can leave a state at several positions, each in
// a slot of its own, with the same bits as in one segment. The first segment of a batch can't be
// chained.
//
// Slots: none is written twice in a batch, and one that a chain (or a lone segment) reads is
// written by nobody but that chain. kPadSlot is legal everywhere: a chain may begin from the zero
// state and keep any of its states, or none.
struct Segment {
  int32_t token_begin;
  int32_t num_tokens;
  int32_t read_slot;   // state before the first token; kPadSlot = zero; or kPreviousSegment
  int32_t write_slot;  // receives the state after the last token; kPadSlot = not kept
};

// out[t, :] = table[token_ids[t], :], widened to f32 (int8: times the row's scale). The table is a
// packed matrix, so that a tied embedding and lm_head are one.
struct EmbeddingGatherParams {
  const PackedMatrix* table;  // [vocab, d_model]
  const int32_t* token_ids;   // [num_tokens], each in [0, vocab)
  float* out;                 // [num_tokens, d_model] contiguous
  int64_t num_tokens;
};

// "Add -> Norm" of the block (mamba_ssm modules/block.py; KERNELS: RMSNorm, Zhang & Sennrich 2019):
//   residual[t, :] += x[t, :]                                            (when residual is given)
//   v = residual given ? residual[t, :] : x[t, :]
//   out[t, c] = v[c] / sqrt(mean(v^2) + eps) * (weight ? weight[c] : 1)
// The mean is summed in one fixed order. out may be x (in place) when residual is null.
// With x null and residual given: plain norm of the residual.
struct RmsNormParams {
  const float* x;  // [num_tokens, channels] stride x_stride; null: nothing to add
  int64_t x_stride;
  float* residual;      // [num_tokens, channels] contiguous, updated; may be null
  const float* weight;  // [channels]; null: weightless (Falcon-Mamba's B, C, dt norms)
  float* out;           // [num_tokens, channels] stride out_stride
  int64_t out_stride;
  float eps;
  int64_t num_tokens;
  int64_t channels;
};

// out[t, n] = sum_k x[t, k] * weight[n, k] + (bias ? bias[n] : 0).
// One accumulator per output, k in increasing order, whatever num_tokens is (batch invariance).
// Weights bf16: products of bf16 weight (exact in f32) and activation; the avx512 path rounds the
// activations to bf16 first (vdpbf16ps), the others don't: that is part of the numerics name.
// Weights int8: W = scale[n] * q[n, k]; the sum is over q, and is multiplied by the scale at the
// end. The avx512 path meets activations in int8 too, each run of kActivationGroup along k with a
// scale of its own (the largest magnitude is 127): sums within a run are exact integers, runs are
// added in f32 in increasing order. The others take q as exact f32 (cuda: bf16) values.
struct LinearParams {
  const float* x;  // [num_tokens, weight->cols()] stride x_stride
  int64_t x_stride;
  const PackedMatrix* weight;  // [rows, cols]
  const float* bias;           // [rows]; may be null
  float* out;                  // [num_tokens, weight->rows()] stride out_stride; not x
  int64_t out_stride;
  int64_t num_tokens;
};

// Depthwise causal convolution with SiLU over each segment (causal-conv1d's causal_conv1d_fn and
// _update; Mamba paper, section 3.4):
//   out[t, c] = silu( bias[c] + sum_{j < width} weight[j, c] * x[t - (width-1) + j, c] )
// where inputs before the segment come from the state: the last width-1 inputs, oldest first.
// Writes the state after the segment's last token to write_slot. out may be x.
struct CausalConv1dParams {
  const float* x;  // [num_tokens, channels] stride x_stride
  int64_t x_stride;
  const float* weight;  // [width, channels] (time-major: row width-1 meets the current token)
  const float* bias;    // [channels]; may be null
  float* states;        // per slot [width-1, channels] f32, time-major, oldest first
  int64_t slot_stride;  // in floats
  float* out;           // [num_tokens, channels] stride out_stride
  int64_t out_stride;
  const Segment* segments;  // [num_segments]
  int64_t num_segments;
  int64_t channels;
  int32_t width;  // 1 .. kMaxConvWidth
};
inline constexpr int32_t kMaxConvWidth = 16;

// Selective scan, Mamba-1 (Gu & Dao 2023, Algorithm 2; selective_scan_ref of state-spaces/mamba),
// with the step of selective_state_update: prefill, chunked prefill and decode share one function.
// Where states are bf16, h is rounded to nearest even after every token, past its use in y: a state
// that was kept and read again is the one that goes on in registers. (cpu-avx512 and cpu-avx2
// differ in what they make of subnormals: the former rounds them to 0.)
//   d      = softplus(dt[t, c] + dt_bias[c])              softplus(v) = v > 20 ? v : log1p(exp(v))
//   h[c,n] = exp(d * a[c, n]) * h[c, n] + (d * x[t, c]) * b[t, n]
//   y[t,c] = (sum_n c[t, n] * h[c, n] + d_skip[c] * x[t, c]) * silu(z[t, c])
// The sum over n has one fixed order.
struct SelectiveScanParams {
  const float* x;  // [num_tokens, channels] stride x_stride: after the convolution
  int64_t x_stride;
  const float* z;  // [num_tokens, channels] stride z_stride: gate
  int64_t z_stride;
  const float* dt;  // [num_tokens, channels] stride dt_stride: before bias and softplus
  int64_t dt_stride;
  const float* b;  // [num_tokens, d_state] stride bc_stride
  const float* c;  // [num_tokens, d_state] stride bc_stride
  int64_t bc_stride;
  const float* a;        // [ceil(channels/16)][d_state][16]: A = -exp(A_log), padded lanes 0
  const float* dt_bias;  // [channels]
  const float* d_skip;   // [channels]
  void* states;          // per slot [ceil(channels/16)][d_state][16]; padded lanes stay 0
  DType state_dtype;     // of states: kF32 or kBF16
  int64_t slot_stride;   // in elements of state_dtype
  float* y;              // [num_tokens, channels] stride y_stride; may be x or z
  int64_t y_stride;
  const Segment* segments;  // [num_segments]
  int64_t num_segments;
  int64_t channels;
  int32_t d_state;  // 1 .. kMaxStateSize
};
inline constexpr int32_t kMaxStateSize = 256;

// One decode step of a whole Mamba-1 layer: every row is the one token of its sequence.
//   residual += W_out y, where
//     h         = RMSNorm(residual; norm_weight, norm_eps)
//     [x|z]     = W_in h;  x = CausalConv1d(x)
//     [r|B|C]   = W_x x;   has_norms: each of r, B, C by a weightless RMSNorm
//     y         = SelectiveScan(x, z, dt = W_dt r, B, C)
// with the bits that RmsNorm, Linear, CausalConv1d and SelectiveScan give on the same backend.
struct MambaDecodeParams {
  float* residual;           // [num_rows, d_model] contiguous, updated; 8-byte aligned, like
                             // norm_weight
  const float* norm_weight;  // [d_model]
  float norm_eps;
  const PackedMatrix* in_proj;   // [2 * d_inner, d_model]: x rows, then z rows
  const float* in_proj_bias;     // [2 * d_inner]; may be null
  const float* conv_weight;      // [d_conv, d_inner]
  const float* conv_bias;        // [d_inner]; may be null
  const PackedMatrix* x_proj;    // [dt_rank + 2 * d_state, d_inner]
  bool has_norms;                // Falcon-Mamba
  float mixer_norm_eps;          // of those
  const PackedMatrix* dt_proj;   // [d_inner, dt_rank]
  const float* a;                // a, dt_bias, d_skip: as SelectiveScanParams
  const float* dt_bias;          // [d_inner]
  const float* d_skip;           // [d_inner]
  const PackedMatrix* out_proj;  // [d_model, d_inner]
  const float* out_proj_bias;    // [d_model]; may be null
  float* conv_states;            // as CausalConv1dParams::states
  void* ssm_states;              // as SelectiveScanParams::states
  DType state_dtype;             // of ssm_states
  int64_t slot_stride;           // in floats (of four bytes), of both
  float* scratch;           // MambaDecodeScratchFloats per row, 64-byte aligned; contents undefined
  const Segment* segments;  // [num_rows]: segment i is row i alone, and none is chained
  int64_t num_rows;
  int64_t d_model;
  int64_t d_inner;
  int64_t dt_rank;
  int32_t d_state;
  int32_t d_conv;
};
// More rows than these are never fused.
inline constexpr int64_t kMaxDecodeRows = 16;
constexpr int64_t MambaDecodeScratchFloats(int64_t d_inner, int64_t dt_rank, int64_t d_state) {
  const auto padded = [](int64_t count) { return (count + 15) / 16 * 16; };
  return padded(2 * d_inner) + padded(dt_rank + 2 * d_state) + padded(d_inner);
}

// out = W RMSNorm(x), with the bits that RmsNorm and Linear give on the same backend.
struct NormLinearParams {
  const float* x;  // [num_rows, weight->cols()] contiguous; 8-byte aligned, like norm_weight
  const float* norm_weight;  // [weight->cols()]
  float norm_eps;
  const PackedMatrix* weight;  // [rows, cols]
  float* out;                  // [num_rows, weight->rows()] stride out_stride; not x
  int64_t out_stride;
  int64_t num_rows;
};

// out[i, :] = x[row_index[i], :].
struct GatherRowsParams {
  const float* x;            // [*, channels] contiguous
  const int32_t* row_index;  // [num_rows]
  float* out;                // [num_rows, channels] contiguous; not x
  int64_t num_rows;
  int64_t channels;
};

// How the token of one row is chosen, in the order in which things act: the row's edits (bias,
// penalties, bans), temperature, top_k, top_p, min_p. The filters select by (logit, lower id
// first):
//   top_k  the k largest;
//   top_p  of these, the fewest of the largest whose weights sum to at least top_p of their sum;
//   min_p  of these, those with at least min_p times the largest weight.
// The largest is always kept. Ids that weigh less than 2^-42 of the largest are never sampled.
struct SampleRow {
  int64_t logit_row;         // row of the logits; -1 = a pad row: nothing is done
  uint64_t seed;             // key of the counter RNG: random(seed, position)
  uint64_t position;         // absolute index of the token in its thread
  float temperature;         // >= 0; 0 = the largest logit, ties to the lower id
  float top_p;               // (0, 1]
  float min_p;               // [0, 1]
  float repetition_penalty;  // > 0: these three act on edits with kRecent
  float presence_penalty;
  float frequency_penalty;
  int32_t top_k;             // >= 0; 0 = off
  int32_t given_id;          // >= 0: choose this id; -1: sample
  int32_t num_top_logprobs;  // -1 = no log-probabilities; else of the chosen and of the n best
  int32_t edits_begin;       // edits [edits_begin, edits_begin + num_edits) are this row's
  int32_t num_edits;
  int32_t reserved = 0;
};
inline constexpr int32_t kMaxTopLogprobs = 20;

// A change of one logit before sampling (EditedLogit in sampling_math.h). The ids of one row's
// edits are distinct.
struct LogitEdit {
  static constexpr uint32_t kRecent = 1;  // in the window of recent tokens: is penalised
  static constexpr uint32_t kBanned = 2;  // can't be chosen
  int32_t token_id;                       // 0 <= token_id < num_ids
  float bias;                             // added; 0 = none
  int32_t num_outputs;                    // how often it was generated in the window
  uint32_t flags;
};

enum class SampleStatus : int32_t {
  kOk = 0,
  kBadLogit = 1,     // a logit is NaN or +infinity
  kNothingLeft = 2,  // all logits are -infinity or banned
};
struct SampledToken {
  int32_t token_id;  // kOk: the chosen one; kBadLogit: the first bad one
  SampleStatus status;
  float bad_logit;  // kBadLogit: its value
  float logprob;    // kOk, where asked for
};
struct RankedToken {
  int32_t token_id;
  float logprob;
};

// tokens[r] = the token that rows[r] asks for. -infinity = can't be chosen. Log-probabilities are
// natural, of the softmax over the usable ids of the raw logits. All sums are of integers: the
// results have the same bits on every backend.
struct SampleTokensParams {
  float* logits;  // [*, num_ids] stride logits_stride; edited on the way, then as before
  int64_t logits_stride;
  int64_t num_ids;        // usable ids are 0 .. num_ids - 1; 1 .. kMaxSampledIds
  const SampleRow* rows;  // [num_rows]; no logit_row twice
  int64_t num_rows;
  const LogitEdit* edits;  // of all rows; may be null where there are none
  float* unedited;         // scratch, one per edit; may be null where there are none
  SampledToken* tokens;    // [num_rows]
  RankedToken* top;        // [num_rows][kMaxTopLogprobs], best first: num_top_logprobs (at most
                           // num_ids) are written; may be null where none are asked for
};
inline constexpr int64_t kMaxSampledIds = int64_t{1} << 21;

}  // namespace vivarium::kernels
