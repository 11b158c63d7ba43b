// Linear: packing of weights, and the split of a product over threads by output columns.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {
namespace {

constexpr int64_t kVectorColumns = 16;
// Rows rounded to bf16 at a time (whole tiles of six): bounds the scratch.
constexpr int64_t kMaxRoundedRows = 510;
// A chunk of work for one thread is worth this many multiply-adds at least (some 2 microseconds).
constexpr int64_t kMinChunkProducts = 64 * 1024;
constexpr int64_t kMinChunkElements = 16 * 1024;  // likewise for rounding and packing

// W [rows, cols] in the layout of op_table.h.
class CpuPackedMatrix final : public PackedMatrix {
 public:
  CpuPackedMatrix(int64_t rows, int64_t cols, DType dtype, int32_t panel_vectors, bool paired)
      : rows_(rows),
        cols_(cols),
        dtype_(dtype),
        panel_columns_(panel_vectors * kVectorColumns),
        paired_(paired) {}

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  DType dtype() const override { return dtype_; }
  size_t bytes() const override {
    const int64_t vectors = (rows_ + kVectorColumns - 1) / kVectorColumns;
    return static_cast<size_t>(vectors * kVectorColumns * padded_cols()) * DTypeBytes(dtype_);
  }

  bool paired() const { return paired_; }
  int64_t panel_columns() const { return panel_columns_; }
  int64_t num_panels() const { return (rows_ + panel_columns_ - 1) / panel_columns_; }
  int64_t padded_cols() const { return paired_ ? (cols_ + 1) / 2 * 2 : cols_; }
  int64_t ColumnsOf(int64_t panel) const {
    return std::min(panel_columns_, rows_ - panel * panel_columns_);
  }
  unsigned char* PanelData(int64_t panel) const {
    return data_.get() +
           static_cast<size_t>(panel * panel_columns_ * padded_cols()) * DTypeBytes(dtype_);
  }
  bool AllocateData() {
    data_.reset(static_cast<unsigned char*>(AllocateAligned(bytes())));
    return data_ != nullptr;
  }

 private:
  const int64_t rows_, cols_;
  const DType dtype_;
  const int64_t panel_columns_;
  const bool paired_;
  AlignedArray<unsigned char> data_;
};

// Packs one panel, block after block along K so that what is written stays cached. Element: float
// or uint16_t (bf16).
template <typename Element>
void PackPanel(const CpuPackedMatrix& matrix, int64_t panel, const void* w, DType from) {
  constexpr int64_t kBlock = 256;
  float block[kBlock];
  auto* out = reinterpret_cast<Element*>(matrix.PanelData(panel));
  const int64_t cols = matrix.cols();
  const int64_t num_columns = matrix.ColumnsOf(panel);
  const int64_t padded_columns =
      (num_columns + kVectorColumns - 1) / kVectorColumns * kVectorColumns;
  const int64_t group = matrix.paired() ? 2 : 1;  // elements along K that lie side by side
  std::memset(out, 0, static_cast<size_t>(padded_columns * matrix.padded_cols()) * sizeof(Element));
  for (int64_t begin = 0; begin < cols; begin += kBlock) {
    const int64_t count = std::min(kBlock, cols - begin);
    for (int64_t column = 0; column < num_columns; ++column) {
      const int64_t first = (panel * matrix.panel_columns() + column) * cols + begin;
      ConvertToF32(
          static_cast<const unsigned char*>(w) + static_cast<size_t>(first) * DTypeBytes(from),
          from, static_cast<size_t>(count), block);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t k = begin + i;
        Element& element = out[(k / group * padded_columns + column) * group + k % group];
        if constexpr (sizeof(Element) == sizeof(float)) {
          element = block[i];
        } else {
          element = F32ToBF16(block[i]);
        }
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
  auto matrix = std::make_unique<CpuPackedMatrix>(rows, cols, to, ops_->panel_vectors, paired);
  if (!matrix->AllocateData()) return nullptr;
  if (paired && !ReserveRounded(matrix->padded_cols())) return nullptr;
  pool_->ParallelFor(matrix->num_panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      if (to == DType::kF32) {
        PackPanel<float>(*matrix, panel, w, from);
      } else {
        PackPanel<uint16_t>(*matrix, panel, w, from);
      }
    }
  });
  return matrix;
}

bool CpuBackend::ReserveRounded(int64_t padded_cols) {
  const int64_t needed = kMaxRoundedRows * padded_cols;
  if (needed <= rounded_capacity_) return true;
  rounded_.reset(
      static_cast<uint16_t*>(AllocateAligned(static_cast<size_t>(needed) * sizeof(uint16_t))));
  rounded_capacity_ = rounded_ == nullptr ? 0 : needed;
  return rounded_ != nullptr;
}

void CpuBackend::Linear(const LinearParams& params) {
  const auto& matrix = static_cast<const CpuPackedMatrix&>(*params.weight);
  const int64_t cols = matrix.cols();
  assert(params.x_stride >= cols && params.out_stride >= matrix.rows());
  const int64_t row_block =
      matrix.paired() ? kMaxRoundedRows : std::max<int64_t>(params.num_tokens, 1);
  for (int64_t begin = 0; begin < params.num_tokens; begin += row_block) {
    const int64_t num_rows = std::min(row_block, params.num_tokens - begin);
    LinearPanel shared{};
    shared.x = params.x + begin * params.x_stride;
    shared.x_stride = params.x_stride;
    shared.depth = cols;
    shared.out_stride = params.out_stride;
    shared.num_tokens = num_rows;
    if (matrix.paired()) {
      shared.x =
          RoundActivations(params.x + begin * params.x_stride, params.x_stride, num_rows, cols);
      shared.x_stride = matrix.padded_cols();
      shared.depth = matrix.padded_cols() / 2;
    }
    const auto run_panel = matrix.dtype() == DType::kF32 ? ops_->linear_f32 : ops_->linear_bf16;
    const int64_t panel_products = num_rows * cols * matrix.panel_columns();
    const int64_t min_panels = (kMinChunkProducts + panel_products - 1) / panel_products;
    pool_->ParallelFor(matrix.num_panels(), min_panels, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        const int64_t column = p * matrix.panel_columns();
        LinearPanel panel = shared;
        panel.weight = matrix.PanelData(p);
        panel.bias = params.bias == nullptr ? nullptr : params.bias + column;
        panel.out = params.out + begin * params.out_stride + column;
        panel.num_columns = static_cast<int32_t>(matrix.ColumnsOf(p));
        run_panel(panel);
      }
    });
  }
}

const uint16_t* CpuBackend::RoundActivations(const float* x, int64_t x_stride, int64_t num_rows,
                                             int64_t cols) {
  const int64_t padded_cols = (cols + 1) / 2 * 2;
  assert(num_rows * padded_cols <= rounded_capacity_);
  uint16_t* const rounded = rounded_.get();
  const int64_t min_rows = kMinChunkElements / padded_cols + 1;
  pool_->ParallelFor(num_rows, min_rows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      ops_->round_to_bf16(x + t * x_stride, cols, rounded + t * padded_cols, padded_cols);
    }
  });
  return rounded;
}

}  // namespace vivarium::kernels
