// The AVX2 + FMA path; compiled with -mavx2 -mfma.
#include "kernels/cpu/op_table.h"
// The lanes come first: the files below are written over them.
#include "kernels/cpu/simd_avx2.h"
//
#include "kernels/cpu/causal_conv1d_impl.h"
#include "kernels/cpu/linear_impl.h"
#include "kernels/cpu/linear_widening_impl.h"
#include "kernels/cpu/rms_norm_impl.h"
#include "kernels/cpu/sampling_lanes_avx2.h"
#include "kernels/cpu/selective_scan_impl.h"
//
#include "kernels/cpu/sample_tokens_impl.h"

namespace vivarium::kernels {

const OpTable* Avx2Ops() {
  static constexpr OpTable kOps = {
      .isa = "avx2",
      .panel_vectors = kPanelVectors,
      .paired_bf16 = false,
      .linear_f32 = LinearF32,
      .linear_bf16 = LinearBF16,
      .linear_int8 = LinearInt8,
      .round_to_bf16 = nullptr,
      .quantize_row = nullptr,
      .rms_norm = RmsNorm,
      .causal_conv1d = CausalConv1d,
      .selective_scan = SelectiveScan,
      .logit_range = RangeOfLogits,
      .find_logit = FindLogit,
      .find_nth_ordered = FindNthOrdered,
      .sum_weights = SumWeights,
      .count_by_order = CountByOrder,
  };
  return &kOps;
}

}  // namespace vivarium::kernels
