#include "engine/model/mixers/mamba.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/device_memory.h"

namespace vivarium::engine {
namespace {

using kernels::kChannelTile;

constexpr int64_t kStateAlignment = 64;
// Rows of scratch begin at multiples of 16 floats: 64 bytes.
constexpr int64_t kRowFloats = 16;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct MambaWeights {
  std::unique_ptr<kernels::PackedMatrix> in_proj;   // [2 * d_inner, d_model]: x rows, z rows
  std::unique_ptr<kernels::PackedMatrix> x_proj;    // [dt_rank + 2 * d_state, d_inner]: r, B, C
  std::unique_ptr<kernels::PackedMatrix> dt_proj;   // [d_inner, dt_rank]
  std::unique_ptr<kernels::PackedMatrix> out_proj;  // [d_model, d_inner]
  DeviceMemory in_proj_bias;                        // [2 * d_inner]; empty: none
  DeviceMemory out_proj_bias;                       // [d_model]; empty: none
  DeviceMemory conv_weight;                         // [d_conv, d_inner]
  DeviceMemory conv_bias;                           // [d_inner]; empty: none
  DeviceMemory a;                                   // [ceil(d_inner/16)][d_state][16]
  DeviceMemory dt_bias;                             // [d_inner]
  DeviceMemory d_skip;                              // [d_inner]
};

class MambaMixer final : public Mixer {
 public:
  MambaMixer(const ModelConfig& config, kernels::Backend* backend, MambaWeights weights,
             const StatePart& conv, const StatePart& ssm)
      : d_inner_(config.d_inner),
        d_state_(config.d_state),
        d_conv_(config.d_conv),
        dt_rank_(config.dt_rank),
        has_norms_(config.mixer_norms),
        norm_eps_(config.mixer_norm_eps),
        conv_offset_bytes_(conv.offset_bytes),
        ssm_offset_bytes_(ssm.offset_bytes),
        ssm_dtype_(ssm.dtype),
        backend_(backend),
        weights_(std::move(weights)) {}

  int64_t scratch_floats_per_token() const override {
    return std::max(xz_stride() + dbl_stride() + dt_stride(),
                    kernels::MambaDecodeScratchFloats(d_inner_, dt_rank_, d_state_));
  }
  const float* Forward(const MixerStep& step) override;

 private:
  int64_t xz_stride() const { return RoundUp(2 * d_inner_, kRowFloats); }
  int64_t dbl_stride() const { return RoundUp(dt_rank_ + 2 * d_state_, kRowFloats); }
  int64_t dt_stride() const { return RoundUp(d_inner_, kRowFloats); }

  // The whole step as one op; false, with nothing done, where that doesn't serve.
  bool Decode(const MixerStep& step);
  void AddAndNorm(const MixerStep& step);
  void Project(const kernels::PackedMatrix& weight, const DeviceMemory* bias, const float* x,
               int64_t x_stride, float* out, int64_t out_stride, int64_t num_tokens);
  void Convolve(const MixerStep& step, float* xz);
  void NormInPlace(float* x, int64_t channels, int64_t num_tokens);
  void Scan(const MixerStep& step, float* xz, const float* dbl, const float* dt);

  const int64_t d_inner_;
  const int64_t d_state_;
  const int64_t d_conv_;
  const int64_t dt_rank_;
  const bool has_norms_;
  const float norm_eps_;
  const uint64_t conv_offset_bytes_;
  const uint64_t ssm_offset_bytes_;
  const kernels::DType ssm_dtype_;
  kernels::Backend* const backend_;
  const MambaWeights weights_;
};

void MambaMixer::Project(const kernels::PackedMatrix& weight, const DeviceMemory* bias,
                         const float* x, int64_t x_stride, float* out, int64_t out_stride,
                         int64_t num_tokens) {
  kernels::LinearParams params{};
  params.x = x;
  params.x_stride = x_stride;
  params.weight = &weight;
  params.bias = bias == nullptr ? nullptr : bias->f32();
  params.out = out;
  params.out_stride = out_stride;
  params.num_tokens = num_tokens;
  backend_->Linear(params);
}

void MambaMixer::Convolve(const MixerStep& step, float* xz) {
  kernels::CausalConv1dParams params{};
  params.x = xz;
  params.x_stride = xz_stride();
  params.weight = weights_.conv_weight.f32();
  params.bias = weights_.conv_bias.f32();
  params.states = reinterpret_cast<float*>(step.slots + conv_offset_bytes_);
  params.slot_stride = static_cast<int64_t>(step.slot_bytes / sizeof(float));
  params.out = xz;
  params.out_stride = xz_stride();
  params.segments = step.segments;
  params.num_segments = step.num_segments;
  params.channels = d_inner_;
  params.width = static_cast<int32_t>(d_conv_);
  backend_->CausalConv1d(params);
}

void MambaMixer::NormInPlace(float* x, int64_t channels, int64_t num_tokens) {
  kernels::RmsNormParams params{};
  params.x = x;
  params.x_stride = dbl_stride();
  params.out = x;
  params.out_stride = dbl_stride();
  params.eps = norm_eps_;
  params.num_tokens = num_tokens;
  params.channels = channels;
  backend_->RmsNorm(params);
}

void MambaMixer::Scan(const MixerStep& step, float* xz, const float* dbl, const float* dt) {
  kernels::SelectiveScanParams params{};
  params.x = xz;
  params.x_stride = xz_stride();
  params.z = xz + d_inner_;
  params.z_stride = xz_stride();
  params.dt = dt;
  params.dt_stride = dt_stride();
  params.b = dbl + dt_rank_;
  params.c = dbl + dt_rank_ + d_state_;
  params.bc_stride = dbl_stride();
  params.a = weights_.a.f32();
  params.dt_bias = weights_.dt_bias.f32();
  params.d_skip = weights_.d_skip.f32();
  params.states = step.slots + ssm_offset_bytes_;
  params.state_dtype = ssm_dtype_;
  params.slot_stride = static_cast<int64_t>(step.slot_bytes / kernels::DTypeBytes(ssm_dtype_));
  params.y = xz;
  params.y_stride = xz_stride();
  params.segments = step.segments;
  params.num_segments = step.num_segments;
  params.channels = d_inner_;
  params.d_state = static_cast<int32_t>(d_state_);
  backend_->SelectiveScan(params);
}

void MambaMixer::AddAndNorm(const MixerStep& step) {
  const int64_t d_model = weights_.in_proj->cols();
  kernels::RmsNormParams params{};
  params.x = step.pending;
  params.x_stride = d_model;
  params.residual = step.residual;
  params.weight = step.norm_weight;
  params.out = step.normed;
  params.out_stride = d_model;
  params.eps = step.norm_eps;
  params.num_tokens = step.num_tokens;
  params.channels = d_model;
  backend_->RmsNorm(params);
}

bool MambaMixer::Decode(const MixerStep& step) {
  if (step.pending != nullptr || !step.is_decode || step.num_tokens > kernels::kMaxDecodeRows) {
    return false;
  }
  kernels::MambaDecodeParams params{};
  params.residual = step.residual;
  params.norm_weight = step.norm_weight;
  params.norm_eps = step.norm_eps;
  params.in_proj = weights_.in_proj.get();
  params.in_proj_bias = weights_.in_proj_bias.f32();
  params.conv_weight = weights_.conv_weight.f32();
  params.conv_bias = weights_.conv_bias.f32();
  params.x_proj = weights_.x_proj.get();
  params.has_norms = has_norms_;
  params.mixer_norm_eps = norm_eps_;
  params.dt_proj = weights_.dt_proj.get();
  params.a = weights_.a.f32();
  params.dt_bias = weights_.dt_bias.f32();
  params.d_skip = weights_.d_skip.f32();
  params.out_proj = weights_.out_proj.get();
  params.out_proj_bias = weights_.out_proj_bias.f32();
  params.conv_states = reinterpret_cast<float*>(step.slots + conv_offset_bytes_);
  params.ssm_states = step.slots + ssm_offset_bytes_;
  params.state_dtype = ssm_dtype_;
  params.slot_stride = static_cast<int64_t>(step.slot_bytes / sizeof(float));
  params.scratch = step.scratch;
  params.segments = step.segments;
  params.num_rows = step.num_tokens;
  params.d_model = weights_.in_proj->cols();
  params.d_inner = d_inner_;
  params.dt_rank = dt_rank_;
  params.d_state = static_cast<int32_t>(d_state_);
  params.d_conv = static_cast<int32_t>(d_conv_);
  return backend_->MambaDecode(params);
}

const float* MambaMixer::Forward(const MixerStep& step) {
  if (Decode(step)) return nullptr;
  const int64_t num_tokens = step.num_tokens;
  float* xz = step.scratch;  // x becomes the convolution's output, then y, in place
  float* dbl = xz + num_tokens * xz_stride();
  float* dt = dbl + num_tokens * dbl_stride();
  const int64_t d_model = weights_.in_proj->cols();

  AddAndNorm(step);
  Project(*weights_.in_proj, &weights_.in_proj_bias, step.normed, d_model, xz, xz_stride(),
          num_tokens);
  Convolve(step, xz);
  Project(*weights_.x_proj, nullptr, xz, xz_stride(), dbl, dbl_stride(), num_tokens);
  if (has_norms_) {
    NormInPlace(dbl, dt_rank_, num_tokens);
    NormInPlace(dbl + dt_rank_, d_state_, num_tokens);
    NormInPlace(dbl + dt_rank_ + d_state_, d_state_, num_tokens);
  }
  Project(*weights_.dt_proj, nullptr, dbl, dbl_stride(), dt, dt_stride(), num_tokens);
  Scan(step, xz, dbl, dt);
  Project(*weights_.out_proj, &weights_.out_proj_bias, xz, xz_stride(), step.out, d_model,
          num_tokens);
  return step.out;
}

// Assigns to `target` what a WeightReader returned, unless `status` holds an error already.
template <typename T>
void Take(absl::StatusOr<T> source, T* target, absl::Status* status) {
  if (!status->ok()) return;
  *status = source.status();
  if (source.ok()) *target = *std::move(source);
}

// A_log [d_inner, d_state] -> A = -exp(A_log), tiled [ceil(d_inner/16)][d_state][16].
std::vector<float> TileA(const std::vector<float>& a_log, int64_t d_inner, int64_t d_state) {
  std::vector<float> a(static_cast<size_t>(RoundUp(d_inner, kChannelTile) * d_state), 0.0f);
  for (int64_t c = 0; c < d_inner; ++c) {
    for (int64_t n = 0; n < d_state; ++n) {
      const double value = -std::exp(static_cast<double>(a_log[c * d_state + n]));
      a[((c / kChannelTile) * d_state + n) * kChannelTile + c % kChannelTile] =
          static_cast<float>(value);
    }
  }
  return a;
}

// [d_inner, 1, d_conv] -> [d_conv, d_inner].
std::vector<float> TransposeConv(const std::vector<float>& weight, int64_t d_inner,
                                 int64_t d_conv) {
  std::vector<float> transposed(weight.size());
  for (int64_t c = 0; c < d_inner; ++c) {
    for (int64_t j = 0; j < d_conv; ++j) transposed[j * d_inner + c] = weight[c * d_conv + j];
  }
  return transposed;
}

absl::StatusOr<MambaWeights> ReadWeights(const ModelConfig& config, const std::string& prefix,
                                         WeightReader* reader) {
  const int64_t d_inner = config.d_inner;
  const int64_t d_state = config.d_state;
  MambaWeights weights;
  absl::Status status;
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols,
                          std::unique_ptr<kernels::PackedMatrix>* target) {
    if (status.ok()) Take(reader->Matrix(absl::StrCat(prefix, name), rows, cols), target, &status);
  };
  const auto projection = [&](const char* name, int64_t rows, int64_t cols,
                              std::unique_ptr<kernels::PackedMatrix>* target) {
    if (!status.ok()) return;
    Take(reader->Projection(absl::StrCat(prefix, name), rows, cols), target, &status);
  };
  const auto vector = [&](const char* name, int64_t size, bool is_optional, DeviceMemory* target) {
    const std::string full_name = absl::StrCat(prefix, name);
    if (!status.ok() || (is_optional && !reader->Has(full_name))) return;
    Take(reader->Vector(full_name, size), target, &status);
  };
  const auto arranged = [&](const char* name, std::vector<int64_t> shape,
                            const WeightReader::Arrange& arrange, DeviceMemory* target) {
    if (!status.ok()) return;
    Take(reader->Vector(absl::StrCat(prefix, name), shape, arrange), target, &status);
  };
  projection("in_proj.weight", 2 * d_inner, config.d_model, &weights.in_proj);
  vector("in_proj.bias", 2 * d_inner, true, &weights.in_proj_bias);
  arranged(
      "conv1d.weight", {d_inner, 1, config.d_conv},
      [&](const auto& w) { return TransposeConv(w, d_inner, config.d_conv); },
      &weights.conv_weight);
  vector("conv1d.bias", d_inner, true, &weights.conv_bias);
  matrix("x_proj.weight", config.dt_rank + 2 * d_state, d_inner, &weights.x_proj);
  matrix("dt_proj.weight", d_inner, config.dt_rank, &weights.dt_proj);
  vector("dt_proj.bias", d_inner, false, &weights.dt_bias);
  arranged(
      "A_log", {d_inner, d_state},
      [&](const auto& a_log) { return TileA(a_log, d_inner, d_state); }, &weights.a);
  vector("D", d_inner, false, &weights.d_skip);
  projection("out_proj.weight", config.d_model, d_inner, &weights.out_proj);
  vector("out_proj.bias", config.d_model, true, &weights.out_proj_bias);
  if (!status.ok()) return status;
  return weights;
}

std::string PartName(int64_t layer_index, const char* part) {
  return absl::StrCat("layers.", layer_index, ".", part);
}

void AppendPart(std::string name, kernels::DType dtype, std::vector<int64_t> shape,
                StateLayout* layout) {
  uint64_t size_bytes = kernels::DTypeBytes(dtype);
  for (const int64_t extent : shape) size_bytes *= static_cast<uint64_t>(extent);
  layout->parts.push_back(
      StatePart{std::move(name), dtype, std::move(shape), layout->slot_bytes, size_bytes});
  layout->slot_bytes = static_cast<uint64_t>(
      RoundUp(static_cast<int64_t>(layout->slot_bytes + size_bytes), kStateAlignment));
}

const StatePart& FindPart(const StateLayout& layout, const std::string& name) {
  for (const StatePart& part : layout.parts) {
    if (part.name == name) return part;
  }
  std::abort();  // the layout was made for another model: our own bug
}

}  // namespace

void AppendMambaState(const ModelConfig& config, int64_t layer_index, kernels::DType ssm_dtype,
                      StateLayout* layout) {
  AppendPart(PartName(layer_index, "conv"), kernels::DType::kF32,
             {config.d_conv - 1, config.d_inner}, layout);
  AppendPart(PartName(layer_index, "ssm"), ssm_dtype,
             {RoundUp(config.d_inner, kChannelTile) / kChannelTile, config.d_state, kChannelTile},
             layout);
}

absl::StatusOr<std::unique_ptr<Mixer>> LoadMamba(const ModelConfig& config, int64_t layer_index,
                                                 const StateLayout& layout,
                                                 kernels::Backend* backend, WeightReader* reader) {
  absl::StatusOr<MambaWeights> weights =
      ReadWeights(config, absl::StrCat("backbone.layers.", layer_index, ".mixer."), reader);
  if (!weights.ok()) return weights.status();
  return std::make_unique<MambaMixer>(config, backend, *std::move(weights),
                                      FindPart(layout, PartName(layer_index, "conv")),
                                      FindPart(layout, PartName(layer_index, "ssm")));
}

}  // namespace vivarium::engine
