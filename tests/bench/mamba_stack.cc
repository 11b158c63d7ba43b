#include "tests/bench/mamba_stack.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

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

std::vector<float> RandomMatrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed) {
  const float scale = std::sqrt(3.0f / static_cast<float>(cols));  // rows of unit expected length
  std::vector<float> w = RandomVector(rows * cols, -scale, scale, seed);
  for (float& value : w) {
    if (dtype == DType::kBF16) value = kernels::BF16ToF32(kernels::F32ToBF16(value));
  }
  return w;
}

}  // namespace

// What all layers share: the values (each layer packs a copy of its own), embedding and head.
struct MambaStack::Weights {
  std::vector<float> in_proj, x_proj, dt_proj, out_proj, embedding;
  std::vector<float> norm, conv, conv_bias, a, dt_bias, d_skip;
  std::vector<uint16_t> embedding_bf16;
  std::unique_ptr<kernels::PackedMatrix> lm_head;
};

struct MambaStack::Layer {
  std::unique_ptr<kernels::PackedMatrix> in_proj, x_proj, dt_proj, out_proj;
  DeviceArray conv_states, scan_states;
};

DeviceArray::DeviceArray(kernels::Backend* backend, int64_t size)
    : backend_(backend),
      data_(static_cast<float*>(backend->Allocate(static_cast<size_t>(size) * sizeof(float)))),
      size_(size) {
  if (data_ == nullptr) {
    std::fprintf(stderr, "out of memory for %ld floats\n", static_cast<long>(size));
    std::exit(1);
  }
}

DeviceArray::~DeviceArray() {
  if (backend_ != nullptr) backend_->Free(data_);
}

DeviceArray& DeviceArray::operator=(DeviceArray&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MambaStack::MambaStack(kernels::Backend* backend, const StackShape& shape, DType weight_dtype,
                       int64_t max_tokens, int64_t max_sequences, ClockFn clock)
    : backend_(backend),
      shape_(shape),
      weight_dtype_(weight_dtype),
      clock_(clock),
      weights_(std::make_unique<Weights>()) {
  const int64_t e = shape.d_inner, d = shape.d_model, r = shape.dt_rank, n = shape.d_state;
  Weights& w = *weights_;
  w.in_proj = RandomMatrix(2 * e, d, weight_dtype, 1);
  w.x_proj = RandomMatrix(r + 2 * n, e, weight_dtype, 2);
  w.dt_proj = RandomMatrix(e, r, weight_dtype, 3);
  w.out_proj = RandomMatrix(d, e, weight_dtype, 4);
  w.embedding = RandomMatrix(shape.vocab_size, d, weight_dtype, 5);
  w.norm = RandomVector(d, 0.5f, 1.5f, 6);
  w.conv = RandomVector(shape.conv_width * e, -0.5f, 0.5f, 7);
  w.conv_bias = RandomVector(e, -0.1f, 0.1f, 8);
  w.a = RandomVector(e * n, -16.0f, -1.0f, 9);
  w.dt_bias = RandomVector(e, -7.0f, -2.0f, 10);
  w.d_skip = RandomVector(e, 0.5f, 1.5f, 11);
  w.embedding_bf16.resize(w.embedding.size());
  for (size_t i = 0; i < w.embedding.size(); ++i) {
    w.embedding_bf16[i] = kernels::F32ToBF16(w.embedding[i]);
  }
  w.lm_head = Pack(w.embedding, shape.vocab_size, d);
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    auto layer = std::make_unique<Layer>();
    layer->in_proj = Pack(w.in_proj, 2 * e, d);
    layer->x_proj = Pack(w.x_proj, r + 2 * n, e);
    layer->dt_proj = Pack(w.dt_proj, e, r);
    layer->out_proj = Pack(w.out_proj, d, e);
    layer->conv_states = DeviceArray(backend, max_sequences * (shape.conv_width - 1) * e);
    layer->scan_states = DeviceArray(backend, max_sequences * e * n);
    layers_.push_back(std::move(layer));
  }
  const auto rows = [&](int64_t channels) { return DeviceArray(backend, max_tokens * channels); };
  residual_ = rows(d);
  hidden_ = rows(d);
  xz_ = rows(2 * e);
  conv_ = rows(e);
  dbc_ = rows(r + 2 * n);
  dt_ = rows(e);
  y_ = rows(e);
  mixed_ = rows(d);
  last_ = DeviceArray(backend, max_sequences * d);
  logits_ = DeviceArray(backend, max_sequences * shape.vocab_size);
}

MambaStack::~MambaStack() = default;

template <typename Run>
void MambaStack::Timed(StackOp op, PerOp* seconds, const Run& run) {
  const double begin = clock_();
  run();
  (*seconds)[static_cast<size_t>(op)] += clock_() - begin;
}

std::unique_ptr<kernels::PackedMatrix> MambaStack::Pack(const std::vector<float>& w, int64_t rows,
                                                        int64_t cols) const {
  auto packed = backend_->Pack(w.data(), DType::kF32, rows, cols, weight_dtype_);
  if (packed == nullptr) {
    std::fprintf(stderr, "out of memory for a matrix of %ld x %ld\n", static_cast<long>(rows),
                 static_cast<long>(cols));
    std::exit(1);
  }
  return packed;
}

void MambaStack::RunLinear(StackOp op, const kernels::LinearParams& params,
                           const std::vector<float>& weight, StackObserver* observer,
                           PerOp* seconds) {
  Timed(op, seconds, [&] { backend_->Linear(params); });
  if (observer != nullptr) observer->OnLinear(op, params, weight);
}

void MambaStack::RunLayer(Layer* layer, const std::vector<Segment>& segments, int64_t num_tokens,
                          StackObserver* observer, PerOp* seconds) {
  const int64_t e = shape_.d_inner, d = shape_.d_model, r = shape_.dt_rank, n = shape_.d_state;
  const auto num_segments = static_cast<int64_t>(segments.size());
  const kernels::RmsNormParams norm{
      mixed_.data(), d, residual_.data(), weights_->norm.data(), hidden_.data(), d, 1e-5f,
      num_tokens,    d};
  const auto run_norm = [&] { backend_->RmsNorm(norm); };
  if (observer != nullptr) {
    observer->OnNorm(norm, run_norm);
  } else {
    Timed(StackOp::kNorm, seconds, run_norm);
  }
  RunLinear(StackOp::kInProj,
            {hidden_.data(), d, layer->in_proj.get(), nullptr, xz_.data(), 2 * e, num_tokens},
            weights_->in_proj, observer, seconds);
  const kernels::CausalConv1dParams conv{xz_.data(),
                                         2 * e,
                                         weights_->conv.data(),
                                         weights_->conv_bias.data(),
                                         layer->conv_states.data(),
                                         (shape_.conv_width - 1) * e,
                                         conv_.data(),
                                         e,
                                         segments.data(),
                                         num_segments,
                                         e,
                                         shape_.conv_width};
  Timed(StackOp::kConv, seconds, [&] { backend_->CausalConv1d(conv); });
  if (observer != nullptr) observer->OnConv(conv, num_tokens);
  RunLinear(StackOp::kXProj,
            {conv_.data(), e, layer->x_proj.get(), nullptr, dbc_.data(), r + 2 * n, num_tokens},
            weights_->x_proj, observer, seconds);
  RunLinear(StackOp::kDtProj,
            {dbc_.data(), r + 2 * n, layer->dt_proj.get(), nullptr, dt_.data(), e, num_tokens},
            weights_->dt_proj, observer, seconds);
  kernels::SelectiveScanParams scan{};
  scan.x = conv_.data();
  scan.z = xz_.data() + e;
  scan.z_stride = 2 * e;
  scan.dt = dt_.data();
  scan.b = dbc_.data() + r;
  scan.c = dbc_.data() + r + n;
  scan.bc_stride = r + 2 * n;
  scan.a = weights_->a.data();
  scan.dt_bias = weights_->dt_bias.data();
  scan.d_skip = weights_->d_skip.data();
  scan.states = layer->scan_states.data();
  scan.slot_stride = e * n;
  scan.y = y_.data();
  scan.x_stride = scan.dt_stride = scan.y_stride = scan.channels = e;
  scan.segments = segments.data();
  scan.num_segments = num_segments;
  scan.d_state = shape_.d_state;
  Timed(StackOp::kScan, seconds, [&] { backend_->SelectiveScan(scan); });
  if (observer != nullptr) observer->OnScan(scan, num_tokens);
  RunLinear(StackOp::kOutProj,
            {y_.data(), e, layer->out_proj.get(), nullptr, mixed_.data(), d, num_tokens},
            weights_->out_proj, observer, seconds);
}

PerOp MambaStack::Step(const StackBatch& batch, bool from_zero, StackObserver* observer) {
  const int64_t d = shape_.d_model;
  std::vector<int32_t> token_ids, last_rows;
  std::vector<Segment> segments;
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const auto begin = static_cast<int32_t>(s * batch.tokens_each);
    const auto count = static_cast<int32_t>(batch.tokens_each);
    segments.push_back(
        {begin, count, from_zero ? kPadSlot : static_cast<int32_t>(s), static_cast<int32_t>(s)});
    last_rows.push_back(begin + count - 1);
    for (int32_t t = 0; t < count; ++t) {
      token_ids.push_back(static_cast<int32_t>((begin + t) * 7919L % shape_.vocab_size));
    }
  }
  PerOp seconds{};
  const bool bf16 = weight_dtype_ == DType::kBF16;
  const void* table =
      bf16 ? static_cast<const void*>(weights_->embedding_bf16.data()) : weights_->embedding.data();
  Timed(StackOp::kEmbed, &seconds, [&] {
    backend_->EmbeddingGather({table, weight_dtype_, shape_.vocab_size, token_ids.data(),
                               residual_.data(), batch.num_tokens(), d});
  });
  backend_->Zero(mixed_.data(), static_cast<size_t>(mixed_.size()) * sizeof(float));
  for (size_t i = 0; i < layers_.size(); ++i) {
    RunLayer(layers_[i].get(), segments, batch.num_tokens(), i == 0 ? observer : nullptr, &seconds);
  }
  Timed(StackOp::kNorm, &seconds, [&] {
    backend_->RmsNorm({mixed_.data(), d, residual_.data(), weights_->norm.data(), hidden_.data(), d,
                       1e-5f, batch.num_tokens(), d});
  });
  backend_->GatherRows({hidden_.data(), last_rows.data(), last_.data(), batch.num_sequences, d});
  RunLinear(StackOp::kLmHead,
            {last_.data(), d, weights_->lm_head.get(), nullptr, logits_.data(), shape_.vocab_size,
             batch.num_sequences},
            weights_->embedding, observer, &seconds);
  return seconds;
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
  const auto linear = [&](double rows, double in, double out) {
    return in * out * weight + rows * (in + out) * 4;
  };
  PerOp bytes{};
  const auto set = [&](StackOp op, double value) { bytes[static_cast<size_t>(op)] = value; };
  set(StackOp::kEmbed, tokens * d * (weight + 4));
  set(StackOp::kNorm, (layers + 1) * tokens * d * 4 * 4);  // x, residual in and out, out
  set(StackOp::kInProj, layers * linear(tokens, d, 2 * e));
  set(StackOp::kConv, layers * 4 * (2 * tokens * e + 2 * sequences * (width - 1) * e));
  set(StackOp::kXProj, layers * linear(tokens, e, r + 2 * n));
  set(StackOp::kDtProj, layers * linear(tokens, r, e));
  set(StackOp::kScan, layers * 4 * (tokens * (4 * e + 2 * n) + 2 * sequences * e * n + e * n));
  set(StackOp::kOutProj, layers * linear(tokens, e, d));
  set(StackOp::kLmHead, linear(sequences, d, vocab));
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
