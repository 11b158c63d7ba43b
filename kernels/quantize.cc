#include "kernels/quantize.h"

#include <cmath>
#include <limits>
#include <vector>

namespace vivarium::kernels {
namespace {

// To nearest, ties to even, whatever the rounding mode: |value| <= 127.5.
int8_t RoundToInt8(float value) {
  const float floor = std::floor(value);
  const float fraction = value - floor;
  auto rounded = static_cast<int>(floor);
  if (fraction > 0.5f || (fraction == 0.5f && rounded % 2 != 0)) ++rounded;
  return static_cast<int8_t>(rounded > kMaxInt8 ? kMaxInt8
                                                : (rounded < -kMaxInt8 ? -kMaxInt8 : rounded));
}

float QuantizeRow(const std::vector<float>& row, int8_t* q) {
  float largest = 0.0f;
  bool is_finite = true;
  for (const float value : row) {
    is_finite = is_finite && std::isfinite(value);
    largest = std::fmax(largest, std::fabs(value));
  }
  // Below the smallest normal scale a quotient could overflow: such a row is zero.
  const float scale = largest / kMaxInt8;
  const bool is_zero = scale < std::numeric_limits<float>::min();
  for (size_t i = 0; i < row.size(); ++i) {
    q[i] = is_finite && !is_zero ? RoundToInt8(row[i] / scale) : int8_t{0};
  }
  if (!is_finite) return std::numeric_limits<float>::quiet_NaN();
  return is_zero ? 0.0f : scale;
}

}  // namespace

void QuantizeRows(const void* w, DType from, int64_t rows, int64_t cols, int8_t* q,
                  float* row_scales) {
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    const auto* source =
        static_cast<const unsigned char*>(w) + static_cast<size_t>(r * cols) * DTypeBytes(from);
    ConvertToF32(source, from, row.size(), row.data());
    row_scales[r] = QuantizeRow(row, q + r * cols);
  }
}

}  // namespace vivarium::kernels
