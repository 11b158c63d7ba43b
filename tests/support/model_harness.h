// ModelHarness: a model loaded from a directory, with slots, for tests and benchmarks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/model/state_view.h"
#include "tests/support/test_environment.h"

namespace vivarium::test {

struct HarnessOptions {
  engine::WeightFormat weights = engine::WeightFormat::kF32;
  kernels::DType state_dtype = kernels::DType::kF32;
  int num_threads = 1;
  std::string device = TestDevice();
  bool deterministic = true;
  std::string isa{};  // "" = the best of this machine
  int32_t max_batch_tokens = 256;
  int32_t max_logit_rows = 256;
  int32_t num_slots = 4;
};

// Owns backend, model and slots. Checkpoint and files are not needed after Load.
class ModelHarness {
 public:
  static absl::StatusOr<std::unique_ptr<ModelHarness>> Load(const std::string& directory,
                                                            const HarnessOptions& options);
  // As Load, of an open checkpoint; `directory` has config.json.
  static absl::StatusOr<std::unique_ptr<ModelHarness>> LoadFrom(
      const engine::Checkpoint& checkpoint, const std::string& directory,
      const HarnessOptions& options);
  ~ModelHarness();

  engine::Model& model() { return *model_; }
  std::byte* slots() { return slots_; }
  int64_t vocab() const { return model_->config().padded_vocab_size; }

  // Feeds `tokens` to `slot` in chunks of at most `chunk` tokens; returns all logits,
  // [tokens.size(), padded_vocab_size].
  std::vector<float> Feed(std::span<const int32_t> tokens, int32_t slot, int32_t chunk);
  // Runs one batch; returns the logits of its logit_rows.
  std::vector<float> Run(const engine::Batch& batch);

  void ZeroSlot(int32_t slot);
  std::vector<std::byte> ReadSlot(int32_t slot);
  void WriteSlot(int32_t slot, std::span<const std::byte> bytes);
  engine::MambaLayerState LayerState(int32_t slot, int64_t layer);

 private:
  ModelHarness() = default;

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<engine::Model> model_;
  std::byte* slots_ = nullptr;
  int32_t num_slots_ = 0;
};

}  // namespace vivarium::test
