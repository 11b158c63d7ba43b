#include "engine/model/model.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/device_memory.h"
#include "engine/model/fingerprint.h"
#include "engine/model/mixers/mamba.h"
#include "engine/model/mixers/mixer.h"
#include "engine/model/step_inputs.h"
#include "engine/model/weight_reader.h"

namespace vivarium::engine {
namespace {

using kernels::DType;

// Activations of one step, allocated once for the largest one.
struct Activations {
  StepInputs inputs;
  DeviceMemory residual;  // [max_batch_tokens, d_model]
  DeviceMemory normed;    // [max_batch_tokens, d_model]
  DeviceMemory mixed;     // [max_batch_tokens, d_model]
  DeviceMemory scratch;   // [max_batch_tokens, scratch_floats_per_token]
  DeviceMemory gathered;  // [max_logit_rows, d_model]
  DeviceMemory logits;    // [max_logit_rows, padded_vocab_size]
};

// What decides which ops a step runs; all else is in its inputs.
struct StepShape {
  int64_t num_tokens;
  int64_t num_segments;
  int64_t num_logit_rows;
  bool is_decode;  // every segment is one token, from a slot
};

// A step of one-token segments, all with logits, recorded for a number of rows.
struct RecordedStep {
  std::unique_ptr<kernels::Recording> recording;  // null: not yet
  std::byte* slots = nullptr;                     // the pool that it was recorded for
};

// Steps are recorded for 1, 2, 4, 8, 16 rows, then for multiples of 16; more rows than the most
// gain nothing that shows.
constexpr int64_t kMaxRecordedRows = 256;
constexpr int64_t kRecordedRowsStep = 16;
constexpr size_t kNumRecordedSteps = 4 + kMaxRecordedRows / kRecordedRowsStep;

bool IsDecode(const Batch& batch) {
  return std::all_of(batch.segments.begin(), batch.segments.end(),
                     [](const kernels::Segment& segment) {
                       return segment.num_tokens == 1 && segment.read_slot >= kernels::kPadSlot;
                     });
}

size_t RecordedIndex(int64_t num_rows) {
  if (num_rows > kRecordedRowsStep / 2) {
    return static_cast<size_t>(3 + (num_rows + kRecordedRowsStep - 1) / kRecordedRowsStep);
  }
  size_t index = 0;
  while (int64_t{1} << index < num_rows) ++index;
  return index;
}

int64_t RecordedRows(size_t index) {
  return index < 4 ? int64_t{1} << index : static_cast<int64_t>(index - 3) * kRecordedRowsStep;
}

struct Layer {
  DeviceMemory norm_weight;  // [d_model]
  std::unique_ptr<Mixer> mixer;
};

struct Weights {
  std::unique_ptr<kernels::PackedMatrix> embedding;  // [padded_vocab_size, d_model]
  std::vector<Layer> layers;
  DeviceMemory final_norm;                         // [d_model]
  std::unique_ptr<kernels::PackedMatrix> lm_head;  // [padded_vocab_size, d_model]; null: tied
  uint64_t bytes = 0;

  const kernels::PackedMatrix* head() const {
    return lm_head == nullptr ? embedding.get() : lm_head.get();
  }
};

// Pre-norm residual blocks over a list of mixers, one RMSNorm before each and one at the end:
//   residual = embedding[token]; per layer: residual += Mixer(RMSNorm(residual)); logits = W
//   RMSNorm
class LanguageModel final : public Model {
 public:
  LanguageModel(ModelConfig config, StateLayout layout, kernels::Backend* backend,
                const ModelOptions& options, Weights weights, Activations activations,
                std::string fingerprint, std::string numerics_id)
      : config_(std::move(config)),
        layout_(std::move(layout)),
        backend_(backend),
        options_(options),
        weights_(std::move(weights)),
        activations_(std::move(activations)),
        fingerprint_(std::move(fingerprint)),
        numerics_id_(std::move(numerics_id)) {}

  const ModelConfig& config() const override { return config_; }
  const StateLayout& state_layout() const override { return layout_; }
  kernels::Backend* backend() const override { return backend_; }
  std::string_view fingerprint() const override { return fingerprint_; }
  std::string_view numerics_id() const override { return numerics_id_; }
  uint64_t weight_bytes() const override { return weights_.bytes; }
  uint64_t activation_bytes() const override {
    return activations_.inputs.bytes() + activations_.residual.bytes() +
           activations_.normed.bytes() + activations_.mixed.bytes() + activations_.scratch.bytes() +
           activations_.gathered.bytes() + activations_.logits.bytes();
  }
  int32_t max_batch_tokens() const override { return options_.max_batch_tokens; }
  int32_t max_logit_rows() const override { return options_.max_logit_rows; }

  float* Forward(const Batch& batch, std::byte* slots) override;

 private:
  void CheckBatch(const Batch& batch) const;
  // Runs the step from a recording; false, with nothing done, when there is none for its kind.
  bool RunRecorded(const Batch& batch, std::byte* slots);
  // All ops of a step whose inputs are on their way to the device.
  void Run(const StepShape& shape, std::byte* slots);
  void Embed(int64_t num_tokens);
  // Logits of residual + pending (when given).
  void Head(const float* pending, const StepShape& shape);

  const ModelConfig config_;
  const StateLayout layout_;
  kernels::Backend* const backend_;
  const ModelOptions options_;
  const Weights weights_;
  Activations activations_;
  const std::string fingerprint_;
  const std::string numerics_id_;
  std::array<RecordedStep, kNumRecordedSteps> recorded_;
};

// What a caller must not get wrong; token ids are checked where requests enter.
void LanguageModel::CheckBatch(const Batch& batch) const {
  const size_t num_tokens = batch.token_ids.size();
  if (num_tokens == 0 || num_tokens > static_cast<size_t>(options_.max_batch_tokens) ||
      batch.logit_rows.size() > static_cast<size_t>(options_.max_logit_rows)) {
    std::abort();
  }
  int64_t row = 0;
  for (const kernels::Segment& segment : batch.segments) {
    if (segment.token_begin != row || segment.num_tokens < 1) std::abort();
    if (row == 0 && segment.read_slot == kernels::kPreviousSegment) std::abort();
    row += segment.num_tokens;
  }
  if (row != static_cast<int64_t>(num_tokens)) std::abort();
  for (const int32_t logit_row : batch.logit_rows) {
    if (logit_row < 0 || logit_row >= row) std::abort();
  }
  for (const int32_t id : batch.token_ids) {
    if (id < 0 || id >= config_.padded_vocab_size) std::abort();
  }
}

void LanguageModel::Embed(int64_t num_tokens) {
  kernels::EmbeddingGatherParams params{};
  params.table = weights_.embedding.get();
  params.token_ids = activations_.inputs.token_ids();
  params.out = activations_.residual.f32();
  params.num_tokens = num_tokens;
  backend_->EmbeddingGather(params);
}

void LanguageModel::Head(const float* pending, const StepShape& shape) {
  if (pending == nullptr && shape.num_logit_rows == shape.num_tokens) {
    kernels::NormLinearParams params{};
    params.x = activations_.residual.f32();
    params.norm_weight = weights_.final_norm.f32();
    params.norm_eps = config_.norm_eps;
    params.weight = weights_.head();
    params.out = activations_.logits.f32();
    params.out_stride = config_.padded_vocab_size;
    params.num_rows = shape.num_tokens;
    if (backend_->NormLinear(params)) return;
  }
  kernels::RmsNormParams norm{};
  norm.x = pending;
  norm.x_stride = config_.d_model;
  norm.residual = activations_.residual.f32();
  norm.weight = weights_.final_norm.f32();
  norm.out = activations_.normed.f32();
  norm.out_stride = config_.d_model;
  norm.eps = config_.norm_eps;
  norm.num_tokens = shape.num_tokens;
  norm.channels = config_.d_model;
  backend_->RmsNorm(norm);
  const float* x = activations_.normed.f32();
  if (shape.num_logit_rows != shape.num_tokens) {
    kernels::GatherRowsParams gather{};
    gather.x = x;
    gather.row_index = activations_.inputs.logit_rows();
    gather.out = activations_.gathered.f32();
    gather.num_rows = shape.num_logit_rows;
    gather.channels = config_.d_model;
    backend_->GatherRows(gather);
    x = gather.out;
  }
  kernels::LinearParams params{};
  params.x = x;
  params.x_stride = config_.d_model;
  params.weight = weights_.head();
  params.out = activations_.logits.f32();
  params.out_stride = config_.padded_vocab_size;
  params.num_tokens = shape.num_logit_rows;
  backend_->Linear(params);
}

void LanguageModel::Run(const StepShape& shape, std::byte* slots) {
  Embed(shape.num_tokens);
  const float* pending = nullptr;  // the previous mixer's output, not yet in the residual
  for (const Layer& layer : weights_.layers) {
    MixerStep step{};
    step.residual = activations_.residual.f32();
    step.pending = pending;
    step.norm_weight = layer.norm_weight.f32();
    step.norm_eps = config_.norm_eps;
    step.normed = activations_.normed.f32();
    step.out = activations_.mixed.f32();
    step.scratch = activations_.scratch.f32();
    step.num_tokens = shape.num_tokens;
    step.segments = activations_.inputs.segments();
    step.num_segments = shape.num_segments;
    step.is_decode = shape.is_decode;
    step.slots = slots;
    step.slot_bytes = layout_.slot_bytes;
    pending = layer.mixer->Forward(step);
  }
  if (shape.num_logit_rows > 0) Head(pending, shape);
}

bool LanguageModel::RunRecorded(const Batch& batch, std::byte* slots) {
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  if (num_rows > kMaxRecordedRows || !IsDecode(batch) ||
      batch.logit_rows.size() != batch.token_ids.size()) {
    return false;
  }
  const size_t index = RecordedIndex(num_rows);
  const int64_t padded_rows =
      std::min<int64_t>({RecordedRows(index), options_.max_batch_tokens, options_.max_logit_rows});
  RecordedStep& step = recorded_[index];
  if (step.recording == nullptr || step.slots != slots) {
    if (!backend_->BeginRecording()) return false;
    activations_.inputs.SetPadded(padded_rows);
    Run({padded_rows, padded_rows, padded_rows, /*is_decode=*/true}, slots);
    step = {backend_->EndRecording(), slots};
    if (step.recording == nullptr) return false;
  }
  activations_.inputs.SendPadded(batch, padded_rows);
  backend_->Replay(*step.recording);
  return true;
}

float* LanguageModel::Forward(const Batch& batch, std::byte* slots) {
  CheckBatch(batch);
  backend_->Synchronize();  // the last step has read its inputs, which are about to be overwritten
  if (!RunRecorded(batch, slots)) {
    activations_.inputs.Send(batch);
    Run({.num_tokens = static_cast<int64_t>(batch.token_ids.size()),
         .num_segments = static_cast<int64_t>(batch.segments.size()),
         .num_logit_rows = static_cast<int64_t>(batch.logit_rows.size()),
         .is_decode = IsDecode(batch)},
        slots);
  }
  return activations_.logits.f32();
}

WeightDTypes ResolveDTypes(const Checkpoint& checkpoint, WeightFormat format) {
  if (format == WeightFormat::kF32) return {DType::kF32, DType::kF32};
  if (format == WeightFormat::kBF16) return {DType::kBF16, DType::kBF16};
  const TensorView* projection = checkpoint.Find("backbone.layers.0.mixer.in_proj.weight");
  const TensorView* matrix = checkpoint.Find("backbone.layers.0.mixer.x_proj.weight");
  const DType dtype =
      matrix != nullptr && matrix->dtype != DType::kF32 ? DType::kBF16 : DType::kF32;
  const bool is_int8 =
      format == WeightFormat::kInt8 || (projection != nullptr && projection->dtype == DType::kI8);
  return {dtype, is_int8 ? DType::kI8 : dtype};
}

absl::StatusOr<Layer> LoadLayer(const ModelConfig& config, int64_t layer_index,
                                const StateLayout& layout, kernels::Backend* backend,
                                WeightReader* reader) {
  absl::StatusOr<DeviceMemory> norm =
      reader->Vector(absl::StrCat("backbone.layers.", layer_index, ".norm.weight"), config.d_model);
  if (!norm.ok()) return norm.status();
  absl::StatusOr<std::unique_ptr<Mixer>> mixer = nullptr;
  switch (config.layers[static_cast<size_t>(layer_index)]) {
    case LayerKind::kMamba:
      mixer = LoadMamba(config, layer_index, layout, backend, reader);
      break;
  }
  if (!mixer.ok()) return mixer.status();
  return Layer{*std::move(norm), *std::move(mixer)};
}

absl::StatusOr<Weights> LoadWeights(const ModelConfig& config, const StateLayout& layout,
                                    kernels::Backend* backend, WeightReader* reader) {
  Weights weights;
  absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> embedding =
      config.tie_embeddings
          ? reader->Projection(kEmbeddingName, config.padded_vocab_size, config.d_model)
          : reader->Matrix(kEmbeddingName, config.padded_vocab_size, config.d_model);
  if (!embedding.ok()) return embedding.status();
  weights.embedding = *std::move(embedding);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    absl::StatusOr<Layer> layer =
        LoadLayer(config, static_cast<int64_t>(i), layout, backend, reader);
    if (!layer.ok()) return layer.status();
    weights.layers.push_back(*std::move(layer));
  }
  absl::StatusOr<DeviceMemory> norm = reader->Vector(kFinalNormName, config.d_model);
  if (!norm.ok()) return norm.status();
  weights.final_norm = *std::move(norm);
  if (!config.tie_embeddings) {
    absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> head =
        reader->Projection(kHeadName, config.padded_vocab_size, config.d_model);
    if (!head.ok()) return head.status();
    weights.lm_head = *std::move(head);
  }
  weights.bytes = reader->device_bytes();
  return weights;
}

absl::StatusOr<Activations> AllocateActivations(const ModelConfig& config,
                                                const ModelOptions& options, const Weights& weights,
                                                kernels::Backend* backend) {
  int64_t scratch_floats = 0;
  for (const Layer& layer : weights.layers) {
    scratch_floats = std::max(scratch_floats, layer.mixer->scratch_floats_per_token());
  }
  const size_t tokens = static_cast<size_t>(options.max_batch_tokens);
  const size_t rows = static_cast<size_t>(options.max_logit_rows);
  const size_t width = static_cast<size_t>(config.d_model);
  Activations activations;
  uint64_t held_bytes = weights.bytes;
  absl::Status status;
  const auto allocate = [&](const char* what, size_t count, size_t floats, DeviceMemory* memory) {
    if (!status.ok()) return;
    const size_t bytes = count * floats * sizeof(float);
    *memory = DeviceMemory(backend, bytes);
    if (memory->data() == nullptr) {
      status = OutOfDeviceMemory(absl::StrCat(what, ", ", count, " rows of ", floats, " f32"),
                                 bytes, held_bytes);
    }
    held_bytes += bytes;
  };
  activations.inputs = StepInputs(backend, options.max_batch_tokens, options.max_logit_rows);
  if (!activations.inputs.is_allocated()) {
    return OutOfDeviceMemory(
        absl::StrCat("inputs of a step of ", tokens, " tokens, ", rows, " rows"),
        StepInputs::Bytes(options.max_batch_tokens, options.max_logit_rows), held_bytes);
  }
  held_bytes += activations.inputs.bytes();
  allocate("the residual", tokens, width, &activations.residual);
  allocate("the normed residual", tokens, width, &activations.normed);
  allocate("mixer outputs", tokens, width, &activations.mixed);
  allocate("mixer scratch", tokens, static_cast<size_t>(scratch_floats), &activations.scratch);
  allocate("gathered rows", rows, width, &activations.gathered);
  allocate("logits", rows, static_cast<size_t>(config.padded_vocab_size), &activations.logits);
  if (!status.ok()) return status;
  return activations;
}

absl::Status CheckOptions(const ModelOptions& options) {
  for (const auto& [name, value] : {std::pair{"max_batch_tokens", options.max_batch_tokens},
                                    std::pair{"max_logit_rows", options.max_logit_rows}}) {
    if (value < 1 || value > kMaxBatchRows) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected 1 to ", kMaxBatchRows, ", found ", value));
    }
  }
  if (options.state_dtype != DType::kF32 && options.state_dtype != DType::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("state_dtype: expected f32 or bf16, found ",
                     std::string(kernels::DTypeName(options.state_dtype))));
  }
  return absl::OkStatus();
}

}  // namespace

StateLayout MakeStateLayout(const ModelConfig& config, DType state_dtype) {
  StateLayout layout;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    switch (config.layers[i]) {
      case LayerKind::kMamba:
        AppendMambaState(config, static_cast<int64_t>(i), state_dtype, &layout);
        break;
    }
  }
  return layout;
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const Checkpoint& checkpoint,
                                                   const ModelConfig& config,
                                                   kernels::Backend* backend,
                                                   const ModelOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  const WeightDTypes dtypes = ResolveDTypes(checkpoint, options.weights);
  StateLayout layout = MakeStateLayout(config, options.state_dtype);
  WeightReader reader(checkpoint, backend, dtypes);
  absl::StatusOr<Weights> weights = LoadWeights(config, layout, backend, &reader);
  if (!weights.ok()) return weights.status();
  absl::StatusOr<Activations> activations = AllocateActivations(config, options, *weights, backend);
  if (!activations.ok()) return activations.status();
  std::string numerics_id = absl::StrCat(backend->numerics_name(), "-w",
                                         std::string(kernels::DTypeName(dtypes.projection)));
  if (dtypes.projection != dtypes.matrix) {
    absl::StrAppend(&numerics_id, "-", std::string(kernels::DTypeName(dtypes.matrix)));
  }
  if (options.state_dtype == DType::kBF16) absl::StrAppend(&numerics_id, "-sbf16");
  return std::make_unique<LanguageModel>(
      config, std::move(layout), backend, options, *std::move(weights), *std::move(activations),
      ModelFingerprint(checkpoint, config), std::move(numerics_id));
}

}  // namespace vivarium::engine
