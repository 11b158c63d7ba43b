// The ops of a Mamba-1 forward pass in their order, on random weights: what kernel_bench times.
// Every layer has weights and states of its own, so that a decode step streams them from memory as
// a model's does.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/machine_peaks.h"
#include "tests/bench/model_shapes.h"

namespace vivarium::bench {

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

// Sees each op of the first layer (and the head) after it ran. All of the params' operands are
// copies in host memory, as they were before the op, but `out`; weights as they were packed,
// row-major, rounded to the packed dtype. Sequences begin with the zero state.
class StackObserver {
 public:
  virtual ~StackObserver() = default;
  virtual void OnLinear(StackOp op, const kernels::LinearParams& params,
                        const std::vector<float>& weight) = 0;
  virtual void OnConv(const kernels::CausalConv1dParams& params, int64_t num_tokens) = 0;
  virtual void OnScan(const kernels::SelectiveScanParams& params, int64_t num_tokens) = 0;
  virtual void OnNorm(const kernels::RmsNormParams& params) = 0;
};

// Elements in the backend's memory, as a model's activations, weights and states are.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(kernels::Backend* backend, int64_t size)
      : backend_(backend),
        data_(static_cast<T*>(backend->Allocate(static_cast<size_t>(size) * sizeof(T)))),
        size_(size) {
    if (data_ == nullptr) DieOutOfMemory(static_cast<size_t>(size) * sizeof(T));
  }
  DeviceArray(kernels::Backend* backend, const std::vector<T>& values)
      : DeviceArray(backend, static_cast<int64_t>(values.size())) {
    Upload(values);
  }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() {
    if (backend_ != nullptr) backend_->Free(data_);
  }
  // At most size() values.
  void Upload(const std::vector<T>& values) {
    backend_->CopyToDevice(data_, values.data(), values.size() * sizeof(T));
  }
  std::vector<T> Fetch(int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    backend_->CopyToHost(values.data(), data_, values.size() * sizeof(T));
    return values;
  }
  T* data() { return data_; }
  int64_t size() const { return size_; }

 private:
  [[noreturn]] static void DieOutOfMemory(size_t bytes) {
    std::fprintf(stderr, "out of device memory for %zu bytes\n", bytes);
    std::exit(1);
  }
  kernels::Backend* backend_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

struct StepTimes {
  PerOp op_seconds;  // of all layers
  double seconds;    // of the whole step
};

class MambaStack {
 public:
  // Activations for at most max_tokens, states for max_sequences; ops are timed by `clock`.
  MambaStack(kernels::Backend* backend, const StackShape& shape, kernels::DType weight_dtype,
             int64_t max_tokens, int64_t max_sequences, ClockFn clock);
  ~MambaStack();

  // Runs one step from zero states, for `observer` to look at.
  void Verify(const StackBatch& batch, StackObserver* observer);
  // Runs and times one step. On the CPU each op is timed in its place. On a device, where asking
  // for the time costs as much as a small op, each op is timed over all layers in a row, and the
  // step once more as a whole.
  StepTimes Step(const StackBatch& batch);
  // The step by the backend's fused ops; nothing where it has none for this batch.
  std::optional<double> FusedStep(const StackBatch& batch);

  // What a step must at least move and compute: weights and states once, activations in and out of
  // each op; two flops per multiply-add, kScanFlopsPerElement per state element and token.
  PerOp Bytes(const StackBatch& batch) const;
  PerOp Flops(const StackBatch& batch) const;

 private:
  struct Layer;
  struct Weights;
  // Sends the batch's ids, segments and rows to the device.
  void Prepare(const StackBatch& batch, bool from_zero);
  // One op of one layer; embedding, last norm and head take null.
  void Run(StackOp op, Layer* layer);
  void RunObserved(StackOp op, Layer* layer, StackObserver* observer);
  kernels::RmsNormParams Norm();
  kernels::LinearParams LinearOf(StackOp op, Layer* layer);
  const std::vector<float>& WeightOf(StackOp op) const;
  kernels::CausalConv1dParams Conv(Layer* layer);
  kernels::SelectiveScanParams Scan(Layer* layer);
  kernels::MambaDecodeParams Decode(Layer* layer);
  void ObserveConv(Layer* layer, StackObserver* observer);
  void ObserveScan(Layer* layer, StackObserver* observer);
  template <typename F>
  double Timed(const F& run);
  std::unique_ptr<kernels::PackedMatrix> Pack(const std::vector<float>& w, int64_t rows,
                                              int64_t cols, kernels::DType dtype) const;

  kernels::Backend* const backend_;
  const StackShape shape_;
  const kernels::DType weight_dtype_;
  const kernels::DType small_dtype_;  // of x_proj and dt_proj, which are never int8
  const ClockFn clock_;
  const bool on_cpu_;
  std::unique_ptr<Weights> weights_;
  std::vector<std::unique_ptr<Layer>> layers_;
  DeviceArray<float> residual_, hidden_, xz_, conv_, dbc_, dt_, y_, mixed_, last_, logits_,
      scratch_;
  DeviceArray<int32_t> token_ids_, last_rows_;
  DeviceArray<kernels::Segment> segments_;
  std::vector<kernels::Segment> host_segments_;
  StackBatch batch_{};
};

}  // namespace vivarium::bench
