#include "tests/bench/mamba_stack.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels/quantize.h"

namespace vivarium::bench {
namespace {

using kernels::DType;
using kernels::kPadSlot;
using kernels::Segment;

// exp as 2^t (10 instructions), its argument, the update and the output: 13 vector instructions of
// two flops each, were they all multiply-adds.
constexpr double kScanFlopsPerElement = 26;

std::vector<float> RandomVector(int64_t size, float low, float high, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = uniform(engine);
  return values;
}

struct Int8Matrix {
  std::vector<int8_t> q;
  std::vector<float> scales;
};

Int8Matrix Quantize(const std::vector<float>& w, int64_t rows, int64_t cols) {
  Int8Matrix matrix{std::vector<int8_t>(w.size()), std::vector<float>(static_cast<size_t>(rows))};
  kernels::QuantizeRows(w.data(), DType::kF32, rows, cols, matrix.q.data(), matrix.scales.data());
  return matrix;
}

// As it is held in `dtype`.
std::vector<float> RandomMatrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed) {
  const float scale = std::sqrt(3.0f / static_cast<float>(cols));  // rows of unit expected length
  std::vector<float> w = RandomVector(rows * cols, -scale, scale, seed);
  for (float& value : w) {
    if (dtype == DType::kBF16) value = kernels::BF16ToF32(kernels::F32ToBF16(value));
  }
  if (dtype == DType::kI8) {
    const Int8Matrix matrix = Quantize(w, rows, cols);
    for (size_t i = 0; i < w.size(); ++i) {
      w[i] = static_cast<float>(matrix.q[i]) * matrix.scales[i / static_cast<size_t>(cols)];
    }
  }
  return w;
}

}  // namespace

// What all layers share: the values (each layer packs a copy of its own), embedding and head.
struct MambaStack::Weights {
  std::vector<float> in_proj, x_proj, dt_proj, out_proj, embedding;
  std::vector<float> norm, conv, conv_bias, a, dt_bias, d_skip;
  std::unique_ptr<kernels::PackedMatrix> lm_head;
};

struct MambaStack::Layer {
  std::unique_ptr<kernels::PackedMatrix> in_proj, x_proj, dt_proj, out_proj;
  DeviceArray<float> norm, conv, conv_bias, a, dt_bias, d_skip;
  DeviceArray<float> states;  // per slot: convolution, then scan
};

namespace {

int64_t ConvFloats(const StackShape& shape) {
  return (shape.conv_width - 1) * shape.d_inner;  // a multiple of 16 in every shape
}

int64_t SlotFloats(const StackShape& shape) {
  return ConvFloats(shape) + shape.d_inner * shape.d_state;
}

}  // namespace

MambaStack::MambaStack(kernels::Backend* backend, const StackShape& shape, DType weight_dtype,
                       int64_t max_tokens, int64_t max_sequences, ClockFn clock)
    : backend_(backend),
      shape_(shape),
      weight_dtype_(weight_dtype),
      small_dtype_(weight_dtype == DType::kI8 ? DType::kBF16 : weight_dtype),
      clock_(clock),
      on_cpu_(backend->device() == "cpu"),
      weights_(std::make_unique<Weights>()) {
  const int64_t e = shape.d_inner, d = shape.d_model, r = shape.dt_rank, n = shape.d_state;
  Weights& w = *weights_;
  w.in_proj = RandomMatrix(2 * e, d, weight_dtype, 1);
  w.x_proj = RandomMatrix(r + 2 * n, e, small_dtype_, 2);
  w.dt_proj = RandomMatrix(e, r, small_dtype_, 3);
  w.out_proj = RandomMatrix(d, e, weight_dtype, 4);
  w.embedding = RandomMatrix(shape.vocab_size, d, weight_dtype, 5);
  w.norm = RandomVector(d, 0.5f, 1.5f, 6);
  w.conv = RandomVector(shape.conv_width * e, -0.5f, 0.5f, 7);
  w.conv_bias = RandomVector(e, -0.1f, 0.1f, 8);
  w.a = RandomVector(e * n, -16.0f, -1.0f, 9);
  w.dt_bias = RandomVector(e, -7.0f, -2.0f, 10);
  w.d_skip = RandomVector(e, 0.5f, 1.5f, 11);
  w.lm_head = Pack(w.embedding, shape.vocab_size, d, weight_dtype);
  const auto upload = [&](const std::vector<float>& values) {
    return DeviceArray<float>(backend, values);
  };
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    auto layer = std::make_unique<Layer>(
        Layer{Pack(w.in_proj, 2 * e, d, weight_dtype), Pack(w.x_proj, r + 2 * n, e, small_dtype_),
              Pack(w.dt_proj, e, r, small_dtype_), Pack(w.out_proj, d, e, weight_dtype),
              upload(w.norm), upload(w.conv), upload(w.conv_bias), upload(w.a), upload(w.dt_bias),
              upload(w.d_skip), DeviceArray<float>(backend, max_sequences * SlotFloats(shape))});
    layers_.push_back(std::move(layer));
  }
  const auto rows = [&](int64_t channels) {
    return DeviceArray<float>(backend, max_tokens * channels);
  };
  residual_ = rows(d);
  hidden_ = rows(d);
  xz_ = rows(2 * e);
  conv_ = rows(e);
  dbc_ = rows(r + 2 * n);
  dt_ = rows(e);
  y_ = rows(e);
  mixed_ = rows(d);
  last_ = DeviceArray<float>(backend, max_sequences * d);
  logits_ = DeviceArray<float>(backend, max_sequences * shape.vocab_size);
  scratch_ = DeviceArray<float>(
      backend, kernels::kMaxDecodeRows * kernels::MambaDecodeScratchFloats(e, r, n));
  token_ids_ = DeviceArray<int32_t>(backend, max_tokens);
  last_rows_ = DeviceArray<int32_t>(backend, max_sequences);
  segments_ = DeviceArray<Segment>(backend, max_sequences);
}

MambaStack::~MambaStack() = default;

template <typename F>
double MambaStack::Timed(const F& run) {
  if (!on_cpu_) backend_->Synchronize();
  const double begin = clock_();
  run();
  if (!on_cpu_) backend_->Synchronize();
  return clock_() - begin;
}

std::unique_ptr<kernels::PackedMatrix> MambaStack::Pack(const std::vector<float>& w, int64_t rows,
                                                        int64_t cols, DType dtype) const {
  std::unique_ptr<kernels::PackedMatrix> packed;
  if (dtype == DType::kI8) {
    const Int8Matrix matrix = Quantize(w, rows, cols);
    packed = backend_->PackInt8(matrix.q.data(), matrix.scales.data(), rows, cols);
  } else {
    packed = backend_->Pack(w.data(), DType::kF32, rows, cols, dtype);
  }
  if (packed == nullptr) {
    std::fprintf(stderr, "out of memory for a matrix of %ld x %ld\n", static_cast<long>(rows),
                 static_cast<long>(cols));
    std::exit(1);
  }
  return packed;
}

void MambaStack::Prepare(const StackBatch& batch, bool from_zero) {
  batch_ = batch;
  host_segments_.clear();
  std::vector<int32_t> token_ids, last_rows;
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const auto begin = static_cast<int32_t>(s * batch.tokens_each);
    const auto count = static_cast<int32_t>(batch.tokens_each);
    host_segments_.push_back(
        {begin, count, from_zero ? kPadSlot : static_cast<int32_t>(s), static_cast<int32_t>(s)});
    last_rows.push_back(begin + count - 1);
    for (int32_t t = 0; t < count; ++t) {
      token_ids.push_back(static_cast<int32_t>((begin + t) * 7919L % shape_.vocab_size));
    }
  }
  token_ids_.Upload(token_ids);
  last_rows_.Upload(last_rows);
  segments_.Upload(host_segments_);
}

kernels::RmsNormParams MambaStack::Norm() {
  const int64_t d = shape_.d_model;
  return {
      mixed_.data(),       d, residual_.data(), layers_[0]->norm.data(), hidden_.data(), d, 1e-5f,
      batch_.num_tokens(), d};
}

kernels::LinearParams MambaStack::LinearOf(StackOp op, Layer* layer) {
  const int64_t e = shape_.d_inner, d = shape_.d_model, r = shape_.dt_rank, n = shape_.d_state;
  const int64_t tokens = batch_.num_tokens();
  switch (op) {
    case StackOp::kInProj:
      return {hidden_.data(), d, layer->in_proj.get(), nullptr, xz_.data(), 2 * e, tokens};
    case StackOp::kXProj:
      return {conv_.data(), e, layer->x_proj.get(), nullptr, dbc_.data(), r + 2 * n, tokens};
    case StackOp::kDtProj:
      return {dbc_.data(), r + 2 * n, layer->dt_proj.get(), nullptr, dt_.data(), e, tokens};
    case StackOp::kOutProj:
      return {y_.data(), e, layer->out_proj.get(), nullptr, mixed_.data(), d, tokens};
    default:
      return {last_.data(),
              d,
              weights_->lm_head.get(),
              nullptr,
              logits_.data(),
              shape_.vocab_size,
              batch_.num_sequences};
  }
}

const std::vector<float>& MambaStack::WeightOf(StackOp op) const {
  switch (op) {
    case StackOp::kInProj:
      return weights_->in_proj;
    case StackOp::kXProj:
      return weights_->x_proj;
    case StackOp::kDtProj:
      return weights_->dt_proj;
    case StackOp::kOutProj:
      return weights_->out_proj;
    default:
      return weights_->embedding;
  }
}

kernels::CausalConv1dParams MambaStack::Conv(Layer* layer) {
  const int64_t e = shape_.d_inner;
  return {xz_.data(),
          2 * e,
          layer->conv.data(),
          layer->conv_bias.data(),
          layer->states.data(),
          SlotFloats(shape_),
          conv_.data(),
          e,
          segments_.data(),
          batch_.num_sequences,
          e,
          shape_.conv_width};
}

kernels::SelectiveScanParams MambaStack::Scan(Layer* layer) {
  const int64_t e = shape_.d_inner, r = shape_.dt_rank, n = shape_.d_state;
  kernels::SelectiveScanParams scan{};
  scan.x = conv_.data();
  scan.z = xz_.data() + e;
  scan.z_stride = 2 * e;
  scan.dt = dt_.data();
  scan.b = dbc_.data() + r;
  scan.c = dbc_.data() + r + n;
  scan.bc_stride = r + 2 * n;
  scan.a = layer->a.data();
  scan.dt_bias = layer->dt_bias.data();
  scan.d_skip = layer->d_skip.data();
  scan.states = layer->states.data() + ConvFloats(shape_);
  scan.slot_stride = SlotFloats(shape_);
  scan.y = y_.data();
  scan.x_stride = scan.dt_stride = scan.y_stride = scan.channels = e;
  scan.segments = segments_.data();
  scan.num_segments = batch_.num_sequences;
  scan.d_state = shape_.d_state;
  return scan;
}

kernels::MambaDecodeParams MambaStack::Decode(Layer* layer) {
  kernels::MambaDecodeParams p{};
  p.residual = residual_.data();
  p.norm_weight = layer->norm.data();
  p.norm_eps = 1e-5f;
  p.in_proj = layer->in_proj.get();
  p.conv_weight = layer->conv.data();
  p.conv_bias = layer->conv_bias.data();
  p.x_proj = layer->x_proj.get();
  p.dt_proj = layer->dt_proj.get();
  p.a = layer->a.data();
  p.dt_bias = layer->dt_bias.data();
  p.d_skip = layer->d_skip.data();
  p.out_proj = layer->out_proj.get();
  p.conv_states = layer->states.data();
  p.ssm_states = layer->states.data() + ConvFloats(shape_);
  p.slot_stride = SlotFloats(shape_);
  p.scratch = scratch_.data();
  p.segments = segments_.data();
  p.num_rows = batch_.num_tokens();
  p.d_model = shape_.d_model;
  p.d_inner = shape_.d_inner;
  p.dt_rank = shape_.dt_rank;
  p.d_state = shape_.d_state;
  p.d_conv = shape_.conv_width;
  return p;
}

void MambaStack::Run(StackOp op, Layer* layer) {
  switch (op) {
    case StackOp::kEmbed:
      return backend_->EmbeddingGather(
          {weights_->lm_head.get(), token_ids_.data(), residual_.data(), batch_.num_tokens()});
    case StackOp::kNorm:
      return backend_->RmsNorm(Norm());
    case StackOp::kConv:
      return backend_->CausalConv1d(Conv(layer));
    case StackOp::kScan:
      return backend_->SelectiveScan(Scan(layer));
    case StackOp::kLmHead:
      backend_->GatherRows(
          {hidden_.data(), last_rows_.data(), last_.data(), batch_.num_sequences, shape_.d_model});
      return backend_->Linear(LinearOf(op, nullptr));
    default:
      return backend_->Linear(LinearOf(op, layer));
  }
}

void MambaStack::ObserveConv(Layer* layer, StackObserver* observer) {
  kernels::CausalConv1dParams conv = Conv(layer);
  const std::vector<float> x = xz_.Fetch(batch_.num_tokens() * conv.x_stride);
  backend_->CausalConv1d(conv);
  std::vector<float> out = conv_.Fetch(batch_.num_tokens() * conv.out_stride);
  conv.x = x.data();
  conv.weight = weights_->conv.data();
  conv.bias = weights_->conv_bias.data();
  conv.states = nullptr;
  conv.out = out.data();
  conv.segments = host_segments_.data();
  observer->OnConv(conv, batch_.num_tokens());
}

void MambaStack::ObserveScan(Layer* layer, StackObserver* observer) {
  const int64_t tokens = batch_.num_tokens();
  kernels::SelectiveScanParams scan = Scan(layer);
  const std::vector<float> x = conv_.Fetch(tokens * scan.x_stride);
  const std::vector<float> xz = xz_.Fetch(tokens * scan.z_stride);
  const std::vector<float> dt = dt_.Fetch(tokens * scan.dt_stride);
  const std::vector<float> dbc = dbc_.Fetch(tokens * scan.bc_stride);
  backend_->SelectiveScan(scan);
  std::vector<float> y = y_.Fetch(tokens * scan.y_stride);
  scan.x = x.data();
  scan.z = xz.data() + shape_.d_inner;
  scan.dt = dt.data();
  scan.b = dbc.data() + shape_.dt_rank;
  scan.c = scan.b + shape_.d_state;
  scan.a = weights_->a.data();
  scan.dt_bias = weights_->dt_bias.data();
  scan.d_skip = weights_->d_skip.data();
  scan.states = nullptr;
  scan.y = y.data();
  scan.segments = host_segments_.data();
  observer->OnScan(scan, tokens);
}

void MambaStack::RunObserved(StackOp op, Layer* layer, StackObserver* observer) {
  if (op == StackOp::kConv) return ObserveConv(layer, observer);
  if (op == StackOp::kScan) return ObserveScan(layer, observer);
  if (op == StackOp::kEmbed) return Run(op, layer);
  const int64_t d = shape_.d_model, tokens = batch_.num_tokens();
  if (op == StackOp::kNorm) {
    const std::vector<float> x = mixed_.Fetch(tokens * d);
    std::vector<float> residual = residual_.Fetch(tokens * d);
    Run(op, layer);
    std::vector<float> out = hidden_.Fetch(tokens * d);
    observer->OnNorm(
        {x.data(), d, residual.data(), weights_->norm.data(), out.data(), d, 1e-5f, tokens, d});
    return;
  }
  Run(op, layer);
  kernels::LinearParams linear = LinearOf(op, layer);
  const auto fetch = [&](const float* device, int64_t count) {
    std::vector<float> host(static_cast<size_t>(count));
    backend_->CopyToHost(host.data(), device, host.size() * sizeof(float));
    return host;
  };
  const std::vector<float> x =
      fetch(linear.x, (linear.num_tokens - 1) * linear.x_stride + linear.weight->cols());
  std::vector<float> out = fetch(linear.out, linear.num_tokens * linear.out_stride);
  linear.x = x.data();
  linear.out = out.data();
  observer->OnLinear(op, linear, WeightOf(op));
}

namespace {

constexpr std::array<StackOp, 7> kLayerOps = {StackOp::kNorm,   StackOp::kInProj, StackOp::kConv,
                                              StackOp::kXProj,  StackOp::kDtProj, StackOp::kScan,
                                              StackOp::kOutProj};

}  // namespace

void MambaStack::Verify(const StackBatch& batch, StackObserver* observer) {
  Prepare(batch, true);
  Run(StackOp::kEmbed, nullptr);
  backend_->Zero(mixed_.data(), static_cast<size_t>(mixed_.size()) * sizeof(float));
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (const StackOp op : kLayerOps) {
      if (i == 0) {
        RunObserved(op, layers_[i].get(), observer);
      } else {
        Run(op, layers_[i].get());
      }
    }
  }
  Run(StackOp::kNorm, nullptr);
  RunObserved(StackOp::kLmHead, nullptr, observer);
}

StepTimes MambaStack::Step(const StackBatch& batch) {
  Prepare(batch, false);
  StepTimes times{};
  const auto timed = [&](StackOp op, Layer* layer) {
    const double seconds = Timed([&] { Run(op, layer); });
    times.op_seconds[static_cast<size_t>(op)] += seconds;
    times.seconds += seconds;
  };
  const auto whole = [&](const auto& run) {
    run(StackOp::kEmbed, nullptr);
    backend_->Zero(mixed_.data(), static_cast<size_t>(mixed_.size()) * sizeof(float));
    for (const auto& layer : layers_) {
      for (const StackOp op : kLayerOps) run(op, layer.get());
    }
    run(StackOp::kNorm, nullptr);
    run(StackOp::kLmHead, nullptr);
  };
  if (on_cpu_) {
    whole(timed);
    return times;
  }
  times.seconds = Timed([&] { whole([&](StackOp op, Layer* layer) { Run(op, layer); }); });
  const auto all_layers = [&](StackOp op) {
    times.op_seconds[static_cast<size_t>(op)] += Timed([&] {
      for (const auto& layer : layers_) Run(op, layer.get());
    });
  };
  for (const StackOp op : kLayerOps) all_layers(op);
  for (const StackOp op : {StackOp::kEmbed, StackOp::kNorm, StackOp::kLmHead}) {
    times.op_seconds[static_cast<size_t>(op)] += Timed([&] { Run(op, nullptr); });
  }
  return times;
}

std::optional<double> MambaStack::FusedStep(const StackBatch& batch) {
  if (batch.tokens_each != 1) return std::nullopt;
  Prepare(batch, false);
  bool fused = true;
  const double seconds = Timed([&] {
    Run(StackOp::kEmbed, nullptr);
    for (const auto& layer : layers_) fused = fused && backend_->MambaDecode(Decode(layer.get()));
    fused = fused && backend_->NormLinear({residual_.data(), layers_[0]->norm.data(), 1e-5f,
                                           weights_->lm_head.get(), logits_.data(),
                                           shape_.vocab_size, batch.num_tokens()});
  });
  return fused ? std::optional(seconds) : std::nullopt;
}

PerOp MambaStack::Bytes(const StackBatch& batch) const {
  const auto layers = static_cast<double>(shape_.num_layers);
  const auto tokens = static_cast<double>(batch.num_tokens());
  const auto sequences = static_cast<double>(batch.num_sequences);
  const auto d = static_cast<double>(shape_.d_model), e = static_cast<double>(shape_.d_inner);
  const auto r = static_cast<double>(shape_.dt_rank), n = static_cast<double>(shape_.d_state);
  const auto vocab = static_cast<double>(shape_.vocab_size);
  const double width = shape_.conv_width;
  const auto weight = static_cast<double>(DTypeBytes(weight_dtype_));
  const auto small_weight = static_cast<double>(DTypeBytes(small_dtype_));
  const auto linear = [&](double rows, double in, double out, double element) {
    return in * out * element + rows * (in + out) * 4;
  };
  PerOp bytes{};
  const auto set = [&](StackOp op, double value) { bytes[static_cast<size_t>(op)] = value; };
  set(StackOp::kEmbed, tokens * d * (weight + 4));
  set(StackOp::kNorm, (layers + 1) * tokens * d * 4 * 4);  // x, residual in and out, out
  set(StackOp::kInProj, layers * linear(tokens, d, 2 * e, weight));
  set(StackOp::kConv, layers * 4 * (2 * tokens * e + 2 * sequences * (width - 1) * e));
  set(StackOp::kXProj, layers * linear(tokens, e, r + 2 * n, small_weight));
  set(StackOp::kDtProj, layers * linear(tokens, r, e, small_weight));
  set(StackOp::kScan, layers * 4 * (tokens * (4 * e + 2 * n) + 2 * sequences * e * n + e * n));
  set(StackOp::kOutProj, layers * linear(tokens, e, d, weight));
  set(StackOp::kLmHead, linear(sequences, d, vocab, weight));
  return bytes;
}

PerOp MambaStack::Flops(const StackBatch& batch) const {
  const auto layers = static_cast<double>(shape_.num_layers);
  const auto tokens = static_cast<double>(batch.num_tokens());
  const auto d = static_cast<double>(shape_.d_model), e = static_cast<double>(shape_.d_inner);
  const auto r = static_cast<double>(shape_.dt_rank), n = static_cast<double>(shape_.d_state);
  PerOp flops{};
  const auto set = [&](StackOp op, double value) { flops[static_cast<size_t>(op)] = value; };
  set(StackOp::kInProj, layers * tokens * 2 * d * 2 * e);
  set(StackOp::kConv, layers * tokens * e * 2 * shape_.conv_width);
  set(StackOp::kXProj, layers * tokens * 2 * e * (r + 2 * n));
  set(StackOp::kDtProj, layers * tokens * 2 * r * e);
  set(StackOp::kScan, layers * tokens * e * n * kScanFlopsPerElement);
  set(StackOp::kOutProj, layers * tokens * 2 * e * d);
  set(StackOp::kLmHead,
      static_cast<double>(batch.num_sequences) * 2 * d * static_cast<double>(shape_.vocab_size));
  return flops;
}

}  // namespace vivarium::bench
