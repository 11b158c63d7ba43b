// Int8 weights: symmetric, one scale per row of the matrix (per output channel).
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace vivarium::kernels {

inline constexpr int kMaxInt8 = 127;  // -128 is not used: the range is symmetric

// W [rows, cols], row-major, of dtype `from` (f32, bf16, f16), as W ~ row_scales[r] * q[r, :] with
// row_scales[r] = max |W[r, :]| / 127 and q rounded to nearest even: an error of at most half a
// scale per element. A row that holds NaN or infinity gets the scale NaN, and so shows itself.
// `q` has room for rows * cols, `row_scales` for rows. Deterministic on every machine.
void QuantizeRows(const void* w, DType from, int64_t rows, int64_t cols, int8_t* q,
                  float* row_scales);

}  // namespace vivarium::kernels
