// One decode step of one layer on random weights, for tests of Backend::MambaDecode.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "tests/kernels/guarded_array.h"

namespace vivarium::kernels {

struct DecodeShape {
  int64_t d_model, d_inner, dt_rank;
  int32_t d_state, d_conv;
  bool has_bias = true;  // of in_proj, convolution and out_proj
  bool has_norms = false;
  DType weights = DType::kBF16;  // kI8: in_proj's and out_proj's alone

  std::string Name() const {
    return "d_model " + std::to_string(d_model) + ", d_inner " + std::to_string(d_inner) +
           ", dt_rank " + std::to_string(dt_rank) + ", d_state " + std::to_string(d_state) +
           ", d_conv " + std::to_string(d_conv) + (has_bias ? ", bias" : "") +
           (has_norms ? ", norms" : "") + ", weights " + std::string(DTypeName(weights));
  }
};

inline std::unique_ptr<PackedMatrix> PackAs(DType dtype, const std::vector<float>& w, int64_t rows,
                                            Backend* backend) {
  const auto cols = static_cast<int64_t>(w.size()) / rows;
  if (dtype != DType::kI8) return backend->Pack(w.data(), DType::kF32, rows, cols, dtype);
  std::vector<int8_t> q(w.size());
  std::vector<float> scales(static_cast<size_t>(rows));
  QuantizeRows(w.data(), DType::kF32, rows, cols, q.data(), scales.data());
  return backend->PackInt8(q.data(), scales.data(), rows, cols);
}

inline int64_t RoundUp16(int64_t count) { return (count + 15) / 16 * 16; }

// Weights, states and residual; slots that no row reads are NaN. Row i reads and writes its slot,
// goes from one to another, begins at zero, keeps nothing, or is a pad row, by i.
class DecodeCase {
 public:
  DecodeCase(const DecodeShape& shape, int64_t num_rows, Backend* backend)
      : shape_(shape),
        num_rows_(num_rows),
        conv_floats_((shape.d_conv - 1) * shape.d_inner),
        ssm_floats_(RoundUp16(shape.d_inner) * shape.d_state),
        slot_stride_(RoundUp16(conv_floats_ + ssm_floats_ + 5)),
        in_proj(RandomMatrix(1, 2 * shape.d_inner, shape.d_model)),
        x_proj(RandomMatrix(2, shape.dt_rank + 2 * shape.d_state, shape.d_inner)),
        dt_proj(RandomMatrix(3, shape.d_inner, shape.dt_rank)),
        out_proj(RandomMatrix(4, shape.d_model, shape.d_inner)),
        norm_weight(shape.d_model),
        in_bias(2 * shape.d_inner),
        conv_weight(shape.d_conv * shape.d_inner),
        conv_bias(shape.d_inner),
        a(ssm_floats_),
        dt_bias(shape.d_inner),
        d_skip(shape.d_inner),
        out_bias(shape.d_model),
        residual(num_rows * shape.d_model),
        states(kNumSlots * slot_stride_),
        scratch_(static_cast<size_t>(num_rows) *
                         MambaDecodeScratchFloats(shape.d_inner, shape.dt_rank, shape.d_state) +
                     16,
                 std::nanf("")) {
    RandomValues random(5);
    for (GuardedArray* array :
         {&norm_weight, &in_bias, &conv_weight, &conv_bias, &d_skip, &out_bias, &residual}) {
      random.Fill(array->data(), array->size());
    }
    for (int64_t i = 0; i < dt_bias.size(); ++i) dt_bias[i] = random.Uniform(-7.0f, 3.0f);
    for (int64_t i = 0; i < ssm_floats_; ++i) {
      a[i] = ChannelAt(i) < shape.d_inner ? -random.Uniform(0.1f, 16.0f) : 0.0f;
    }
    for (int32_t i = 0; i < num_rows; ++i) {
      const int32_t slot = (i * 5 + 3) % kMaxDecodeRows * 2;
      const int32_t read = i % 5 == 2 || i % 5 == 4 ? kPadSlot : slot;
      const int32_t write = i % 5 >= 3 ? kPadSlot : i % 5 == 1 ? slot + 1 : slot;
      segments.push_back({i, 1, read, write});
      if (read >= 0) FillSlot(read);
    }
    const DType small = shape.weights == DType::kI8 ? DType::kBF16 : shape.weights;
    packed_in = PackAs(shape.weights, in_proj, 2 * shape.d_inner, backend);
    packed_x = PackAs(small, x_proj, shape.dt_rank + 2 * shape.d_state, backend);
    packed_dt = PackAs(small, dt_proj, shape.d_inner, backend);
    packed_out = PackAs(shape.weights, out_proj, shape.d_model, backend);
  }

  float* conv_states() { return states.data(); }
  float* ssm_states() { return states.data() + conv_floats_; }
  int64_t slot_stride() const { return slot_stride_; }
  int64_t conv_floats() const { return conv_floats_; }
  int64_t num_rows() const { return num_rows_; }
  const DecodeShape& shape() const { return shape_; }
  int64_t ChannelAt(int64_t i) const {
    return i / (shape_.d_state * kChannelTile) * kChannelTile + i % kChannelTile;
  }
  // 64-byte aligned.
  float* scratch() {
    const uintptr_t past = reinterpret_cast<uintptr_t>(scratch_.data()) % 64;
    return scratch_.data() + (64 - past) % 64 / sizeof(float);
  }

  void PoisonScratch() { std::fill(scratch_.begin(), scratch_.end(), std::nanf("")); }

  MambaDecodeParams Params() {
    const auto optional = [this](const GuardedArray& bias) {
      return shape_.has_bias ? bias.data() : nullptr;
    };
    MambaDecodeParams params{};
    params.residual = residual.data();
    params.norm_weight = norm_weight.data();
    params.norm_eps = 1e-5f;
    params.in_proj = packed_in.get();
    params.in_proj_bias = optional(in_bias);
    params.conv_weight = conv_weight.data();
    params.conv_bias = optional(conv_bias);
    params.x_proj = packed_x.get();
    params.has_norms = shape_.has_norms;
    params.mixer_norm_eps = 1e-6f;
    params.dt_proj = packed_dt.get();
    params.a = a.data();
    params.dt_bias = dt_bias.data();
    params.d_skip = d_skip.data();
    params.out_proj = packed_out.get();
    params.out_proj_bias = optional(out_bias);
    params.conv_states = conv_states();
    params.ssm_states = ssm_states();
    params.slot_stride = slot_stride_;
    params.scratch = scratch();
    params.segments = segments.data();
    params.num_rows = num_rows_;
    params.d_model = shape_.d_model;
    params.d_inner = shape_.d_inner;
    params.dt_rank = shape_.dt_rank;
    params.d_state = shape_.d_state;
    params.d_conv = shape_.d_conv;
    return params;
  }

  // The same step by the ops that MambaDecode stands for.
  void RunOps(Backend* backend);

 private:
  static constexpr int32_t kNumSlots = 2 * kMaxDecodeRows;

  // Values of bf16, scaled so that products stay near 1.
  static std::vector<float> RandomMatrix(uint64_t seed, int64_t rows, int64_t cols) {
    std::vector<float> w(static_cast<size_t>(rows * cols));
    RandomValues(seed).Fill(w.data(), rows * cols, 1.0f / std::sqrt(static_cast<float>(cols)));
    for (float& value : w) value = BF16ToF32(F32ToBF16(value));
    return w;
  }
  void FillSlot(int32_t slot) {
    RandomValues random(100 + static_cast<uint64_t>(slot));
    float* const at = states.data() + slot * slot_stride_;
    random.Fill(at, conv_floats_);
    for (int64_t i = 0; i < ssm_floats_; ++i) {
      at[conv_floats_ + i] = ChannelAt(i) < shape_.d_inner ? random.Normal() : 0.0f;
    }
  }

  const DecodeShape shape_;
  const int64_t num_rows_, conv_floats_, ssm_floats_, slot_stride_;

 public:
  const std::vector<float> in_proj, x_proj, dt_proj, out_proj;  // row-major
  GuardedArray norm_weight, in_bias, conv_weight, conv_bias, a, dt_bias, d_skip, out_bias;
  GuardedArray residual, states;
  std::unique_ptr<PackedMatrix> packed_in, packed_x, packed_dt, packed_out;
  std::vector<Segment> segments;

 private:
  std::vector<float> scratch_;
};

inline void DecodeCase::RunOps(Backend* backend) {
  const int64_t d_inner = shape_.d_inner;
  const int64_t projected_cols = shape_.dt_rank + 2 * shape_.d_state;
  GuardedArray normed(num_rows_ * shape_.d_model), xz(num_rows_ * 2 * d_inner),
      projected(num_rows_ * projected_cols), dt(num_rows_ * d_inner),
      mixed(num_rows_ * shape_.d_model), unused(num_rows_ * shape_.d_model);
  const auto norm = [&](RmsNormParams params, int64_t channels, float eps) {
    params.eps = eps;
    params.num_tokens = num_rows_;
    params.channels = channels;
    backend->RmsNorm(params);
  };
  const auto linear = [&](const float* x, int64_t x_stride, const PackedMatrix& weight,
                          const GuardedArray* bias, float* out) {
    backend->Linear({x, x_stride, &weight,
                     bias != nullptr && shape_.has_bias ? bias->data() : nullptr, out,
                     weight.rows(), num_rows_});
  };
  norm({nullptr, 0, residual.data(), norm_weight.data(), normed.data(), shape_.d_model, 0, 0, 0},
       shape_.d_model, 1e-5f);
  linear(normed.data(), shape_.d_model, *packed_in, &in_bias, xz.data());
  const auto num_segments = static_cast<int64_t>(segments.size());
  backend->CausalConv1d({xz.data(), 2 * d_inner, conv_weight.data(),
                         shape_.has_bias ? conv_bias.data() : nullptr, conv_states(), slot_stride_,
                         xz.data(), 2 * d_inner, segments.data(), num_segments, d_inner,
                         shape_.d_conv});
  linear(xz.data(), 2 * d_inner, *packed_x, nullptr, projected.data());
  float* const b = projected.data() + shape_.dt_rank;
  if (shape_.has_norms) {
    for (const auto& [part, channels] :
         {std::pair<float*, int64_t>{projected.data(), shape_.dt_rank},
          {b, shape_.d_state},
          {b + shape_.d_state, shape_.d_state}}) {
      norm({part, projected_cols, nullptr, nullptr, part, projected_cols, 0, 0, 0}, channels,
           1e-6f);
    }
  }
  linear(projected.data(), projected_cols, *packed_dt, nullptr, dt.data());
  SelectiveScanParams scan{};
  scan.x = scan.y = xz.data();
  scan.z = xz.data() + d_inner;
  scan.x_stride = scan.z_stride = scan.y_stride = 2 * d_inner;
  scan.dt = dt.data();
  scan.dt_stride = d_inner;
  scan.b = b;
  scan.c = b + shape_.d_state;
  scan.bc_stride = projected_cols;
  scan.a = a.data();
  scan.dt_bias = dt_bias.data();
  scan.d_skip = d_skip.data();
  scan.states = ssm_states();
  scan.slot_stride = slot_stride_;
  scan.y = xz.data();
  scan.segments = segments.data();
  scan.num_segments = num_segments;
  scan.channels = d_inner;
  scan.d_state = shape_.d_state;
  backend->SelectiveScan(scan);
  linear(xz.data(), 2 * d_inner, *packed_out, &out_bias, mixed.data());
  norm({mixed.data(), shape_.d_model, residual.data(), nullptr, unused.data(), shape_.d_model, 0, 0,
        0},
       shape_.d_model, 1e-5f);
  backend->Synchronize();
}

}  // namespace vivarium::kernels
