// CpuPackedMatrix: a weight matrix in the layout of op_table.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {

inline constexpr int64_t kVectorColumns = 16;
// Added to int8 weights in fours, which are held unsigned.
inline constexpr int kInt8Offset = 128;

class CpuPackedMatrix final : public PackedMatrix {
 public:
  // group: elements along K that lie side by side.
  CpuPackedMatrix(int64_t rows, int64_t cols, DType dtype, int32_t panel_vectors, int32_t group)
      : rows_(rows),
        cols_(cols),
        dtype_(dtype),
        panel_columns_(panel_vectors * kVectorColumns),
        group_(group) {}

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  DType dtype() const override { return dtype_; }
  size_t bytes() const override { return data_bytes() + scale_bytes(); }

  int64_t group() const { return group_; }
  int64_t panel_columns() const { return panel_columns_; }
  int64_t num_panels() const { return (rows_ + panel_columns_ - 1) / panel_columns_; }
  int64_t padded_cols() const { return (cols_ + group_ - 1) / group_ * group_; }
  int64_t ColumnsOf(int64_t panel) const {
    return std::min(panel_columns_, rows_ - panel * panel_columns_);
  }
  int64_t PaddedColumnsOf(int64_t panel) const {
    return (ColumnsOf(panel) + kVectorColumns - 1) / kVectorColumns * kVectorColumns;
  }
  unsigned char* PanelData(int64_t panel) const {
    return data_.get() +
           static_cast<size_t>(panel * panel_columns_ * padded_cols()) * DTypeBytes(dtype_);
  }
  // Of W[panel's column `column`][k], in elements of PanelData(panel).
  int64_t ElementIndex(int64_t panel, int64_t column, int64_t k) const {
    return (k / group_ * PaddedColumnsOf(panel) + column) * group_ + k % group_;
  }
  // [rows], null but for int8.
  float* scales() const { return scales_.get(); }

  bool AllocateData() {
    data_.reset(static_cast<unsigned char*>(AllocateAligned(data_bytes())));
    if (dtype_ == DType::kI8) {
      scales_.reset(static_cast<float*>(AllocateAligned(scale_bytes())));
      if (scales_ == nullptr) return false;
    }
    return data_ != nullptr;
  }

 private:
  size_t data_bytes() const {
    const int64_t vectors = (rows_ + kVectorColumns - 1) / kVectorColumns;
    return static_cast<size_t>(vectors * kVectorColumns * padded_cols()) * DTypeBytes(dtype_);
  }
  size_t scale_bytes() const {
    return dtype_ == DType::kI8 ? static_cast<size_t>(rows_) * sizeof(float) : 0;
  }

  const int64_t rows_, cols_;
  const DType dtype_;
  const int64_t panel_columns_;
  const int64_t group_;
  AlignedArray<unsigned char> data_;
  AlignedArray<float> scales_;
};

}  // namespace vivarium::kernels
