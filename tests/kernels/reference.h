// Naive double-precision versions of the ops, written from the equations of kernels/ops.h alone.
// Each result comes with the magnitude that its tolerance is relative to (see tolerances.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace vivarium::kernels {

struct Reference {
  std::vector<double> value;
  std::vector<double> magnitude;
};

double ReferenceSoftplus(double v);
double ReferenceSilu(double v);

// [num_tokens, rows] from x [num_tokens, cols] (stride x_stride) and w [rows, cols], both as the
// kernel sees them (already rounded to bf16 where it rounds). bias may be null.
Reference ReferenceLinear(const float* x, int64_t x_stride, const float* w, const float* bias,
                          int64_t num_tokens, int64_t rows, int64_t cols);

// [num_tokens, channels]; reads params' x, residual and weight, writes nothing.
Reference ReferenceRmsNorm(const RmsNormParams& params);

// What an op with states yields: out [num_tokens, channels] (rows outside every segment stay 0),
// and for each segment the state it writes, in the layout of ops.h.
struct StatefulReference {
  Reference out;
  std::vector<Reference> states;  // one per segment
};

StatefulReference ReferenceCausalConv1d(const CausalConv1dParams& params, int64_t num_tokens);
StatefulReference ReferenceSelectiveScan(const SelectiveScanParams& params, int64_t num_tokens);

}  // namespace vivarium::kernels
