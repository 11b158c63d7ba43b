// The AVX-512 path (F, BW, VL, DQ and BF16); compiled with -mavx512*.
#include "kernels/cpu/op_table.h"
// The lanes come first: the files below are written over them.
#include "kernels/cpu/simd_avx512.h"
//
#include "kernels/cpu/causal_conv1d_impl.h"
#include "kernels/cpu/linear_impl.h"
#include "kernels/cpu/linear_int8_impl.h"
#include "kernels/cpu/linear_paired_impl.h"
#include "kernels/cpu/rms_norm_impl.h"
#include "kernels/cpu/sampling_lanes_avx512.h"
#include "kernels/cpu/selective_scan_impl.h"
//
#include "kernels/cpu/sample_tokens_impl.h"

namespace vivarium::kernels {

const OpTable* Avx512Ops() {
  static constexpr OpTable kOps = {
      .isa = "avx512",
      .panel_vectors = kPanelVectors,
      .paired_bf16 = true,
      .linear_f32 = LinearF32,
      .linear_bf16 = LinearBF16,
      .linear_int8 = LinearInt8,
      .round_to_bf16 = RoundToBF16,
      .quantize_row = QuantizeRow,
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
