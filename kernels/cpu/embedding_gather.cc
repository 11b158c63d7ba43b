// Embedding rows out of a packed matrix. Its bytes lie in strides of a panel's width: a token costs
// a few hundred cache lines, next to nothing beside the weights that it meets.
#include <algorithm>
#include <cassert>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_matrix.h"

namespace vivarium::kernels {
namespace {

constexpr int64_t kMinChunkElements = 32 * 1024;  // some tens of microseconds

// Elements W[row][0, cols) as f32: widen(element).
template <typename Element, typename Widen>
void UnpackRow(const CpuPackedMatrix& matrix, int64_t row, float* out, const Widen& widen) {
  const int64_t panel = row / matrix.panel_columns();
  const int64_t column = row % matrix.panel_columns();
  const auto* data = reinterpret_cast<const Element*>(matrix.PanelData(panel));
  const int64_t group = matrix.group();
  const int64_t step = matrix.PaddedColumnsOf(panel) * group;
  data += column * group;
  for (int64_t k = 0; k < matrix.cols(); k += group, data += step) {
    const int64_t count = std::min(group, matrix.cols() - k);
    for (int64_t i = 0; i < count; ++i) out[k + i] = widen(data[i]);
  }
}

}  // namespace

void CpuBackend::EmbeddingGather(const EmbeddingGatherParams& params) {
  const auto& matrix = static_cast<const CpuPackedMatrix&>(*params.table);
  const int64_t d_model = matrix.cols();
  pool_->ParallelFor(
      params.num_tokens, kMinChunkElements / d_model + 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t row = params.token_ids[t];
          assert(row >= 0 && row < matrix.rows());
          float* out = params.out + t * d_model;
          if (matrix.dtype() == DType::kF32) {
            UnpackRow<float>(matrix, row, out, [](float value) { return value; });
          } else if (matrix.dtype() == DType::kBF16) {
            UnpackRow<uint16_t>(matrix, row, out, [](uint16_t bits) { return BF16ToF32(bits); });
          } else {
            const float scale = matrix.scales()[row];
            const int offset = matrix.group() == 1 ? 0 : kInt8Offset;
            UnpackRow<uint8_t>(matrix, row, out, [&](uint8_t bits) {
              const int value = offset == 0 ? static_cast<int8_t>(bits) : bits - offset;
              return static_cast<float>(value) * scale;
            });
          }
        }
      });
}

}  // namespace vivarium::kernels
