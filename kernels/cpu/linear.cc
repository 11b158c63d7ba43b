// Linear: rounding of activations, and the split of a product over threads by output columns.
#include <algorithm>
#include <cassert>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_matrix.h"

namespace vivarium::kernels {
namespace {

// Rows rounded to bf16 or int8 at a time (whole tiles of six): bounds the scratch.
constexpr int64_t kMaxRoundedRows = 510;
// A chunk of work for one thread is worth this many multiply-adds at least (some 2 microseconds).
constexpr int64_t kMinChunkProducts = 64 * 1024;
constexpr int64_t kMinChunkElements = 16 * 1024;  // likewise for rounding

int64_t RoundUp(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

int64_t NumGroups(int64_t cols) { return (cols + kActivationGroup - 1) / kActivationGroup; }

}  // namespace

bool CpuBackend::ReserveBytes(size_t bytes) {
  if (bytes <= rounded_bytes_) return true;
  rounded_.reset(static_cast<unsigned char*>(AllocateAligned(bytes)));
  rounded_bytes_ = rounded_ == nullptr ? 0 : bytes;
  return rounded_ != nullptr;
}

bool CpuBackend::ReserveRounded(int64_t padded_cols) {
  return ReserveBytes(static_cast<size_t>(kMaxRoundedRows * padded_cols) * sizeof(uint16_t));
}

bool CpuBackend::ReserveQuantized(int64_t padded_cols) {
  const int64_t row_bytes =
      padded_cols + NumGroups(padded_cols) * static_cast<int64_t>(sizeof(float) + sizeof(int32_t));
  return ReserveBytes(static_cast<size_t>(kMaxRoundedRows * row_bytes));
}

void CpuBackend::Linear(const LinearParams& params) {
  const auto& matrix = static_cast<const CpuPackedMatrix&>(*params.weight);
  const int64_t cols = matrix.cols();
  assert(params.x_stride >= cols && params.out_stride >= matrix.rows());
  const int64_t row_block =
      matrix.group() > 1 ? kMaxRoundedRows : std::max<int64_t>(params.num_tokens, 1);
  for (int64_t begin = 0; begin < params.num_tokens; begin += row_block) {
    const int64_t num_rows = std::min(row_block, params.num_tokens - begin);
    const float* const x = params.x + begin * params.x_stride;
    LinearPanel shared{};
    shared.x = x;
    shared.x_stride = params.x_stride;
    shared.depth = matrix.padded_cols() / matrix.group();
    shared.out_stride = params.out_stride;
    shared.num_tokens = num_rows;
    auto run_panel = matrix.dtype() == DType::kF32 ? ops_->linear_f32 : ops_->linear_bf16;
    if (matrix.dtype() == DType::kI8) run_panel = ops_->linear_int8;
    if (matrix.group() > 1) {
      if (matrix.dtype() == DType::kI8) {
        QuantizeActivations(x, params.x_stride, num_rows, cols, &shared);
      } else {
        RoundActivations(x, params.x_stride, num_rows, cols, &shared);
      }
    }
    const int64_t panel_products = num_rows * cols * matrix.panel_columns();
    const int64_t min_panels = (kMinChunkProducts + panel_products - 1) / panel_products;
    pool_->ParallelFor(matrix.num_panels(), min_panels, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        const int64_t column = p * matrix.panel_columns();
        LinearPanel panel = shared;
        panel.weight = matrix.PanelData(p);
        panel.bias = params.bias == nullptr ? nullptr : params.bias + column;
        panel.scales = matrix.scales() == nullptr ? nullptr : matrix.scales() + column;
        panel.out = params.out + begin * params.out_stride + column;
        panel.num_columns = static_cast<int32_t>(matrix.ColumnsOf(p));
        run_panel(panel);
      }
    });
  }
}

void CpuBackend::RoundActivations(const float* x, int64_t x_stride, int64_t num_rows, int64_t cols,
                                  LinearPanel* panel) {
  const int64_t padded_cols = RoundUp(cols, 2);
  assert(static_cast<size_t>(num_rows * padded_cols) * sizeof(uint16_t) <= rounded_bytes_);
  auto* const rounded = reinterpret_cast<uint16_t*>(rounded_.get());
  pool_->ParallelFor(
      num_rows, kMinChunkElements / padded_cols + 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          ops_->round_to_bf16(x + t * x_stride, cols, rounded + t * padded_cols, padded_cols);
        }
      });
  panel->x = rounded;
  panel->x_stride = padded_cols;
}

void CpuBackend::QuantizeActivations(const float* x, int64_t x_stride, int64_t num_rows,
                                     int64_t cols, LinearPanel* panel) {
  const int64_t padded_cols = RoundUp(cols, 4);
  const int64_t num_groups = NumGroups(cols);
  assert(static_cast<size_t>(num_rows * (padded_cols + num_groups * 8)) <= rounded_bytes_);
  // The scales first: they need the alignment.
  auto* const scales = reinterpret_cast<float*>(rounded_.get());
  auto* const offsets = reinterpret_cast<int32_t*>(scales + num_rows * num_groups);
  auto* const quantized = reinterpret_cast<int8_t*>(offsets + num_rows * num_groups);
  pool_->ParallelFor(
      num_rows, kMinChunkElements / padded_cols + 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          ops_->quantize_row(x + t * x_stride, cols, quantized + t * padded_cols, padded_cols,
                             scales + t * num_groups, offsets + t * num_groups);
        }
      });
  panel->x = quantized;
  panel->x_stride = padded_cols;
  panel->x_scales = scales;
  panel->x_offsets = offsets;
  panel->num_groups = num_groups;
}

}  // namespace vivarium::kernels
