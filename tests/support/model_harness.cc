#include "tests/support/model_harness.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <utility>

namespace vivarium::test {

absl::StatusOr<std::unique_ptr<ModelHarness>> ModelHarness::Load(const std::string& directory,
                                                                 const HarnessOptions& options) {
  auto checkpoint = engine::Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  return LoadFrom(**checkpoint, directory, options);
}

absl::StatusOr<std::unique_ptr<ModelHarness>> ModelHarness::LoadFrom(
    const engine::Checkpoint& checkpoint, const std::string& directory,
    const HarnessOptions& options) {
  auto harness = std::unique_ptr<ModelHarness>(new ModelHarness);
  kernels::BackendOptions backend_options;
  backend_options.num_threads = options.num_threads;
  backend_options.isa = options.isa;
  backend_options.deterministic = options.deterministic;
  std::string error;
  harness->backend_ = kernels::Backend::Create(options.device, backend_options, &error);
  if (harness->backend_ == nullptr) return absl::InvalidArgumentError(error);
  auto config = engine::LoadModelConfig(directory, checkpoint);
  if (!config.ok()) return config.status();
  engine::ModelOptions model_options;
  model_options.weights = options.weights;
  model_options.state_dtype = options.state_dtype;
  model_options.max_batch_tokens = options.max_batch_tokens;
  model_options.max_logit_rows = options.max_logit_rows;
  auto model = engine::Model::Load(checkpoint, *config, harness->backend_.get(), model_options);
  if (!model.ok()) return model.status();
  harness->model_ = *std::move(model);
  harness->num_slots_ = options.num_slots;
  const uint64_t bytes = harness->model_->state_layout().slot_bytes * options.num_slots;
  harness->slots_ = static_cast<std::byte*>(harness->backend_->Allocate(bytes));
  if (harness->slots_ == nullptr) return absl::ResourceExhaustedError("no memory for slots");
  return harness;
}

ModelHarness::~ModelHarness() {
  if (backend_ != nullptr) backend_->Free(slots_);
}

std::vector<float> ModelHarness::Run(const engine::Batch& batch) {
  const float* logits = model_->Forward(batch, slots_);
  std::vector<float> result(batch.logit_rows.size() * static_cast<size_t>(vocab()));
  if (!result.empty()) {
    backend_->CopyToHost(result.data(), logits, result.size() * sizeof(float));
  }
  return result;
}

std::vector<float> ModelHarness::Feed(std::span<const int32_t> tokens, int32_t slot,
                                      int32_t chunk) {
  std::vector<float> all;
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t size = std::min<size_t>(static_cast<size_t>(chunk), tokens.size() - begin);
    const kernels::Segment segment{0, static_cast<int32_t>(size), slot, slot};
    std::vector<int32_t> rows(size);
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<float> logits = Run({tokens.subspan(begin, size), {&segment, 1}, rows});
    all.insert(all.end(), logits.begin(), logits.end());
    begin += size;
  }
  return all;
}

void ModelHarness::ZeroSlot(int32_t slot) {
  const uint64_t bytes = model_->state_layout().slot_bytes;
  backend_->Zero(slots_ + slot * bytes, bytes);
}

std::vector<std::byte> ModelHarness::ReadSlot(int32_t slot) {
  std::vector<std::byte> bytes(model_->state_layout().slot_bytes);
  backend_->CopyToHost(bytes.data(), slots_ + slot * bytes.size(), bytes.size());
  return bytes;
}

void ModelHarness::WriteSlot(int32_t slot, std::span<const std::byte> bytes) {
  backend_->CopyToDevice(slots_ + slot * model_->state_layout().slot_bytes, bytes.data(),
                         bytes.size());
}

engine::MambaLayerState ModelHarness::LayerState(int32_t slot, int64_t layer) {
  absl::StatusOr<engine::MambaLayerState> state =
      engine::ReadLayerState(model_->config(), model_->state_layout(), ReadSlot(slot), layer);
  if (!state.ok()) {
    std::fprintf(stderr, "%s\n", state.status().ToString().c_str());
    std::abort();
  }
  return *std::move(state);
}

}  // namespace vivarium::test
