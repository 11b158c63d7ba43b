// Writes random Mamba models as directories (config.json + weights), for tests and benchmarks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dtype.h"

namespace vivarium::test {

enum class Naming { kHuggingFace, kStateSpaces };

// The model to write. Defaults: small, every extent odd or otherwise awkward.
struct MambaSpec {
  int64_t num_layers = 2;
  int64_t d_model = 20;
  int64_t d_inner = 24;
  int64_t d_state = 5;
  int64_t d_conv = 4;
  int64_t dt_rank = 3;
  int64_t vocab_size = 37;        // rows of the embedding
  int64_t stated_vocab_size = 0;  // vocab_size in config.json; 0 = vocab_size
  kernels::DType dtype = kernels::DType::kF32;
  Naming naming = Naming::kHuggingFace;
  bool is_falcon = false;  // Hugging Face's FalconMambaForCausalLM
  bool is_tied = true;
  bool has_proj_bias = false;
  bool has_conv_bias = true;
  int num_shards = 1;  // above 1: several safetensors files and an index
  uint64_t seed = 1;
};

// One tensor, whose values follow from its description.
struct RandomTensor {
  std::string name;
  kernels::DType dtype;
  std::vector<int64_t> shape;
  float center;
  float spread;  // uniform in center +- spread; A_log: around log(n + 1)
  bool is_a_log;
  uint64_t seed;

  int64_t Count() const;
  std::vector<float> Values() const;  // rounded to dtype
};

// The tensors of `spec`'s model, with the names of its naming.
std::vector<RandomTensor> MambaTensors(const MambaSpec& spec);
// config.json's text.
std::string MambaConfigJson(const MambaSpec& spec);
// Writes config.json and the weights into the existing `directory`.
void WriteMambaModel(const MambaSpec& spec, const std::string& directory);

// A safetensors file of `tensors`, written tensor by tensor.
void WriteSafetensors(const std::string& path, const std::vector<RandomTensor>& tensors);
// Rounds to nearest even; overflow goes to infinity.
uint16_t F32ToF16(float value);
// `values` as the bytes of `dtype`, each rounded to nearest even.
std::string EncodeValues(const std::vector<float>& values, kernels::DType dtype);

}  // namespace vivarium::test
