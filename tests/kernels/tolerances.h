// How far a CPU kernel may be from the double-precision reference: the one table.
//
// Each bound is relative to a magnitude that the reference computes beside the value: the sum of
// the absolute values of all terms that the result adds up (so that cancellation is not blamed on
// the kernel). They hold for every instruction-set path, f32 and bf16 weights; where activations
// are rounded to bf16 (avx512), the reference is given the rounded ones. Measured maxima:
// kernels/README.md.
#pragma once

namespace vivarium::kernels {

struct Tolerances {
  double linear = 4e-7;      // of sum_k |x_k w_k| + |bias|; one f32 accumulator over k
  double rms_norm = 1e-6;    // of |out|, plus what the addition of the residual rounds away
  double conv = 1e-6;        // of (|bias| + sum_j |w_j x_j|)
  double scan_y = 4e-6;      // of (sum_n |C_n h_n| + |D x|) * |silu(z)|, after up to 200 tokens
  double scan_state = 4e-6;  // of sum over tokens of the decayed |dt x B|
  // Elementary functions, relative.
  double exp = 3e-7;  // of exp(-v), 0 <= v <= 87
  double softplus = 3e-7;
  double silu = 3e-7;
};
inline constexpr Tolerances kTolerances;

}  // namespace vivarium::kernels
