// The ops of a Mamba-1 forward pass in their order, on random weights: what kernel_bench times.
// Every layer has weights and states of its own, so that a decode step streams them from memory as
// a model's does.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/machine_peaks.h"

namespace vivarium::bench {

struct StackShape {
  int64_t num_layers, d_model, d_inner, dt_rank, vocab_size;
  int32_t d_state, conv_width;
};
inline constexpr StackShape kMamba130m = {24, 768, 1536, 48, 50280, 16, 4};

enum class StackOp { kEmbed, kNorm, kInProj, kConv, kXProj, kDtProj, kScan, kOutProj, kLmHead };
inline constexpr int kNumStackOps = 9;
inline constexpr std::array<std::string_view, kNumStackOps> kStackOpNames = {
    "embed", "norm", "in_proj", "conv", "x_proj", "dt_proj", "scan", "out_proj", "lm_head"};

// One number per op: seconds, bytes or flops of a whole step.
using PerOp = std::array<double, kNumStackOps>;

// One step's work: sequences of equally many tokens; logits of each one's last token.
struct StackBatch {
  int64_t num_sequences;
  int64_t tokens_each;
  int64_t num_tokens() const { return num_sequences * tokens_each; }
};

// Sees each op of the first layer (and the head) right after it ran.
class StackObserver {
 public:
  virtual ~StackObserver() = default;
  // `weight` is what was packed: row-major, already rounded to the packed dtype.
  virtual void OnLinear(StackOp op, const kernels::LinearParams& params,
                        const std::vector<float>& weight) = 0;
  virtual void OnConv(const kernels::CausalConv1dParams& params, int64_t num_tokens) = 0;
  virtual void OnScan(const kernels::SelectiveScanParams& params, int64_t num_tokens) = 0;
  // Called before the op runs, since it updates the residual.
  virtual void OnNorm(const kernels::RmsNormParams& params, const std::function<void()>& run) = 0;
};

// Floats in the backend's memory, as a model's activations and states are.
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(kernels::Backend* backend, int64_t size);
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept;
  ~DeviceArray();
  float* data() { return data_; }
  int64_t size() const { return size_; }

 private:
  kernels::Backend* backend_ = nullptr;
  float* data_ = nullptr;
  int64_t size_ = 0;
};

class MambaStack {
 public:
  // Activations for at most max_tokens, states for max_sequences; ops are timed by `clock`.
  MambaStack(kernels::Backend* backend, const StackShape& shape, kernels::DType weight_dtype,
             int64_t max_tokens, int64_t max_sequences, ClockFn clock);
  ~MambaStack();

  // Runs one step; `from_zero`: the sequences begin with it. Returns seconds per op. observer may
  // be null.
  PerOp Step(const StackBatch& batch, bool from_zero, StackObserver* observer);

  // What a step must at least move and compute: weights and states once, activations in and out of
  // each op; two flops per multiply-add, kScanFlopsPerElement per state element and token.
  PerOp Bytes(const StackBatch& batch) const;
  PerOp Flops(const StackBatch& batch) const;

 private:
  struct Layer;
  struct Weights;
  void RunLayer(Layer* layer, const std::vector<kernels::Segment>& segments, int64_t num_tokens,
                StackObserver* observer, PerOp* seconds);
  template <typename Run>
  void Timed(StackOp op, PerOp* seconds, const Run& run);
  void RunLinear(StackOp op, const kernels::LinearParams& params, const std::vector<float>& weight,
                 StackObserver* observer, PerOp* seconds);
  std::unique_ptr<kernels::PackedMatrix> Pack(const std::vector<float>& w, int64_t rows,
                                              int64_t cols) const;

  kernels::Backend* const backend_;
  const StackShape shape_;
  const kernels::DType weight_dtype_;
  const ClockFn clock_;
  std::unique_ptr<Weights> weights_;
  std::vector<std::unique_ptr<Layer>> layers_;
  DeviceArray residual_, hidden_, xz_, conv_, dbc_, dt_, y_, mixed_, last_, logits_;
};

}  // namespace vivarium::bench
