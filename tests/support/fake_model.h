// FakeModel: a language model without arithmetic, for tests of what runs models.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model.h"
#include "kernels/backend.h"

namespace vivarium::testing {

// A "state" is a hash of all tokens consumed, written out over the whole slot, so that every byte
// of it is a function of the thread: a token lost, doubled, out of order, or fed to the wrong slot
// changes every later logit. Logits are a pseudo-random function of that hash.
//
// Aborts, naming the reason, on a batch that breaks the contract of Batch and Segment and on a
// state that is torn.
class FakeModel : public engine::Model {
 public:
  struct Options {
    int64_t vocab_size = 61;
    int64_t padded_vocab_size = 64;
    int32_t max_batch_tokens = 64;
    int32_t max_logit_rows = 64;
    int32_t max_slots = 1 << 20;  // slots beyond it are a broken contract
    uint64_t slot_bytes = 256;
    std::vector<int32_t> eos_token_ids = {0};
  };
  FakeModel(kernels::Backend* backend, const Options& options);

  const engine::ModelConfig& config() const override { return config_; }
  const engine::StateLayout& state_layout() const override { return layout_; }
  kernels::Backend* backend() const override { return backend_; }
  std::string_view fingerprint() const override { return "fake-model"; }
  std::string_view numerics_id() const override { return "fake-v1-wf32"; }
  uint64_t weight_bytes() const override { return 0; }
  uint64_t activation_bytes() const override { return 0; }
  int32_t max_batch_tokens() const override { return options_.max_batch_tokens; }
  int32_t max_logit_rows() const override { return options_.max_logit_rows; }
  float* Forward(const engine::Batch& batch, std::byte* slots) override;

  // The slot's bytes after `tokens`, from the zero state.
  std::vector<std::byte> StateAfter(const std::vector<int32_t>& tokens) const;
  // The logits after `tokens`, padded rows included.
  std::vector<float> LogitsAfter(const std::vector<int32_t>& tokens) const;

  int64_t num_forwards = 0;
  int64_t num_rows = 0;
  // Called in each Forward, before it computes anything.
  std::function<void(const engine::Batch&)> on_forward;
  // Changes the logits of a row: given the number of tokens consumed and all padded logits.
  std::function<void(uint64_t, std::vector<float>*)> edit_logits;

 private:
  struct Thread {
    uint64_t hash = 0;
    uint64_t num_tokens = 0;
  };
  void CheckBatch(const engine::Batch& batch) const;
  Thread Read(const std::byte* slot) const;
  void Write(const Thread& thread, std::byte* slot) const;
  static Thread Next(const Thread& thread, int32_t token);
  void FillLogits(const Thread& thread, float* logits) const;

  kernels::Backend* backend_;
  Options options_;
  engine::ModelConfig config_;
  engine::StateLayout layout_;
  std::vector<float> logits_;
};

}  // namespace vivarium::testing
