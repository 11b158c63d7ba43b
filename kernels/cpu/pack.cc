// Packing of weight matrices, panel by panel over the threads.
#include <algorithm>
#include <cassert>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_matrix.h"

namespace vivarium::kernels {
namespace {

// Columns of W packed at a time, so that what is written stays cached.
constexpr int64_t kBlock = 256;

// Element: float, uint16_t (bf16) or uint8_t. convert(row, begin, count, block) yields
// W[row][begin, begin + count); what pads the panel is `zero`.
template <typename Element, typename Convert>
void PackPanel(const CpuPackedMatrix& matrix, int64_t panel, Element zero, const Convert& convert) {
  Element block[kBlock];
  auto* out = reinterpret_cast<Element*>(matrix.PanelData(panel));
  std::fill_n(out, matrix.PaddedColumnsOf(panel) * matrix.padded_cols(), zero);
  for (int64_t begin = 0; begin < matrix.cols(); begin += kBlock) {
    const int64_t count = std::min(kBlock, matrix.cols() - begin);
    for (int64_t column = 0; column < matrix.ColumnsOf(panel); ++column) {
      convert(panel * matrix.panel_columns() + column, begin, count, block);
      for (int64_t i = 0; i < count; ++i) {
        out[matrix.ElementIndex(panel, column, begin + i)] = block[i];
      }
    }
  }
}

}  // namespace

std::unique_ptr<PackedMatrix> CpuBackend::Pack(const void* w, DType from, int64_t rows,
                                               int64_t cols, DType to) {
  assert(rows >= 1 && cols >= 1);
  assert(to == DType::kF32 || to == DType::kBF16);
  const bool paired = to == DType::kBF16 && ops_->paired_bf16;
  auto matrix =
      std::make_unique<CpuPackedMatrix>(rows, cols, to, ops_->panel_vectors, paired ? 2 : 1);
  if (!matrix->AllocateData()) return nullptr;
  if (paired && !ReserveRounded(matrix->padded_cols())) return nullptr;
  const auto* bytes = static_cast<const unsigned char*>(w);
  const auto widen = [&](int64_t row, int64_t begin, int64_t count, float* block) {
    ConvertToF32(bytes + static_cast<size_t>(row * cols + begin) * DTypeBytes(from), from,
                 static_cast<size_t>(count), block);
  };
  const auto narrow = [&](int64_t row, int64_t begin, int64_t count, uint16_t* block) {
    float wide[kBlock];
    widen(row, begin, count, wide);
    for (int64_t i = 0; i < count; ++i) block[i] = F32ToBF16(wide[i]);
  };
  pool_->ParallelFor(matrix->num_panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      if (to == DType::kF32) {
        PackPanel(*matrix, panel, 0.0f, widen);
      } else {
        PackPanel(*matrix, panel, uint16_t{0}, narrow);
      }
    }
  });
  return matrix;
}

std::unique_ptr<PackedMatrix> CpuBackend::PackInt8(const int8_t* q, const float* row_scales,
                                                   int64_t rows, int64_t cols) {
  assert(rows >= 1 && cols >= 1);
  const bool in_fours = ops_->quantize_row != nullptr;
  auto matrix = std::make_unique<CpuPackedMatrix>(rows, cols, DType::kI8, ops_->panel_vectors,
                                                  in_fours ? 4 : 1);
  if (!matrix->AllocateData()) return nullptr;
  if (in_fours && !ReserveQuantized(matrix->padded_cols())) return nullptr;
  std::memcpy(matrix->scales(), row_scales, static_cast<size_t>(rows) * sizeof(float));
  const int offset = in_fours ? kInt8Offset : 0;
  const auto shift = [&](int64_t row, int64_t begin, int64_t count, uint8_t* block) {
    for (int64_t i = 0; i < count; ++i) {
      block[i] = static_cast<uint8_t>(q[row * cols + begin + i] + offset);
    }
  };
  pool_->ParallelFor(matrix->num_panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      PackPanel(*matrix, panel, static_cast<uint8_t>(offset), shift);
    }
  });
  return matrix;
}

}  // namespace vivarium::kernels
