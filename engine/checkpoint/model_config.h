// ModelConfig: what config.json says, in one spelling, checked against the tensors' shapes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace vivarium::engine {

// The kind of one layer's mixer.
enum class LayerKind : uint8_t { kMamba = 0 };

// Dimensions and constants of a model. Sources: `MambaForCausalLM`, `FalconMambaForCausalLM`
// (Hugging Face) and state-spaces' config.json; where a config field and a tensor's shape disagree,
// the shape wins (Falcon-Mamba's "expand" is wrong, for one).
struct ModelConfig {
  std::string architecture;       // as in the file: "MambaForCausalLM", "state-spaces", ...
  int64_t vocab_size = 0;         // token ids that the config allows: 0 .. vocab_size - 1
  int64_t padded_vocab_size = 0;  // rows of the embedding = width of the logits; >= vocab_size
  int64_t d_model = 0;
  int64_t d_inner = 0;
  int64_t d_state = 0;  // 1 .. kernels::kMaxStateSize
  int64_t d_conv = 0;   // 1 .. kernels::kMaxConvWidth
  int64_t dt_rank = 0;
  std::vector<LayerKind> layers;  // one per layer; 1 .. kMaxLayers
  float norm_eps = 1e-5f;
  bool tie_embeddings = true;           // no lm_head.weight in the checkpoint
  bool mixer_norms = false;             // weightless RMSNorm of B, C and dt (Falcon-Mamba)
  float mixer_norm_eps = 1e-6f;         // Falcon-Mamba's mixer_rms_eps
  std::optional<int32_t> bos_token_id;  // config.json, overridden by generation_config.json
  std::vector<int32_t> eos_token_ids;   // likewise; empty: no end-of-sequence token
};
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxVocabSize = 1 << 21;
inline constexpr int64_t kMaxModelWidth = 1 << 17;  // d_model, d_inner

// Generation defaults of generation_config.json; absent fields have no value.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> repetition_penalty;
  std::optional<bool> do_sample;
};

// Reads `config.json` and `generation_config.json` of `directory` and checks them against
// `checkpoint`. NOT_FOUND without config.json; INVALID_ARGUMENT naming file, field or tensor,
// expected and found; UNIMPLEMENTED naming an architecture that is not served.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory,
                                            const Checkpoint& checkpoint);
// All fields absent when there is no generation_config.json.
absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(const std::string& directory);

}  // namespace vivarium::engine
