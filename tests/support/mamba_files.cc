#include "tests/support/mamba_files.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/temp_dir.h"

namespace vivarium::test {
namespace {

using kernels::DType;

// SplitMix64 (Steele, Lea & Flood 2014): element i of a tensor needs no state before it.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

float Uniform(uint64_t seed, uint64_t index) {  // in [-1, 1)
  return static_cast<float>(Mix(seed * 0x632BE59BD9B4E019ull + index) >> 40) * 0x1p-23f - 1.0f;
}

uint64_t NameSeed(const std::string& name, uint64_t seed) {
  uint64_t hash = seed;
  for (const char c : name) hash = Mix(hash ^ static_cast<unsigned char>(c));
  return hash;
}

float Round(float value, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return value;
    case DType::kBF16:
      return kernels::BF16ToF32(kernels::F32ToBF16(value));
    case DType::kF16:
      return kernels::F16ToF32(F32ToF16(value));
    case DType::kI8:
      break;
  }
  std::abort();
}

const char* SafetensorsName(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "F16";
}

const char* TorchName(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kBF16 ? "bfloat16" : "float16";
}

}  // namespace

uint16_t F32ToF16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // The spacing of halves at this magnitude: 2^(e-11) for a mantissa in [0.5, 1) * 2^e.
  const int spacing = std::max(exponent - 11, -24);
  const float units = std::nearbyint(std::ldexp(magnitude, -spacing));
  // Below 2^-14 a unit is the last bit; above, each step of the exponent is worth 1024 units.
  const int biased = std::max(spacing + 24, 0);
  return sign | static_cast<uint16_t>(static_cast<int>(units) + biased * 1024);
}

std::string EncodeValues(const std::vector<float>& values, DType dtype) {
  std::string bytes(values.size() * kernels::DTypeBytes(dtype), '\0');
  if (dtype == DType::kF32) {
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half =
        dtype == DType::kBF16 ? kernels::F32ToBF16(values[i]) : F32ToF16(values[i]);
    std::memcpy(bytes.data() + 2 * i, &half, sizeof(half));
  }
  return bytes;
}

int64_t RandomTensor::Count() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::vector<float> RandomTensor::Values() const {
  std::vector<float> values(static_cast<size_t>(Count()));
  for (size_t i = 0; i < values.size(); ++i) {
    const float base =
        is_a_log ? std::log(1.0f + static_cast<float>(i % static_cast<size_t>(shape[1]))) : center;
    values[i] = Round(base + spread * Uniform(seed, i), dtype);
  }
  return values;
}

std::vector<RandomTensor> MambaTensors(const MambaSpec& spec) {
  std::vector<RandomTensor> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float center,
                       float spread) {
    tensors.push_back({name, spec.dtype, std::move(shape), center, spread, name.ends_with("A_log"),
                       NameSeed(name, spec.seed)});
  };
  // Uniform of the same variance as a normal of 1/sqrt(fan_in).
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    add(name, {rows, cols}, 0.0f, std::sqrt(3.0f / static_cast<float>(cols)));
  };
  const std::string embedding = spec.naming == Naming::kHuggingFace ? "embeddings" : "embedding";
  add("backbone." + embedding + ".weight", {spec.vocab_size, spec.d_model}, 0.0f, 0.8f);
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = "backbone.layers." + std::to_string(i) + ".";
    const std::string mixer = layer + "mixer.";
    add(layer + "norm.weight", {spec.d_model}, 1.0f, 0.3f);
    matrix(mixer + "in_proj.weight", 2 * spec.d_inner, spec.d_model);
    if (spec.has_proj_bias) add(mixer + "in_proj.bias", {2 * spec.d_inner}, 0.0f, 0.3f);
    add(mixer + "conv1d.weight", {spec.d_inner, 1, spec.d_conv}, 0.0f, 0.8f);
    if (spec.has_conv_bias) add(mixer + "conv1d.bias", {spec.d_inner}, 0.0f, 0.3f);
    matrix(mixer + "x_proj.weight", spec.dt_rank + 2 * spec.d_state, spec.d_inner);
    matrix(mixer + "dt_proj.weight", spec.d_inner, spec.dt_rank);
    add(mixer + "dt_proj.bias", {spec.d_inner}, -2.5f, 2.0f);
    add(mixer + "A_log", {spec.d_inner, spec.d_state}, 0.0f, 0.2f);
    add(mixer + "D", {spec.d_inner}, 1.0f, 0.3f);
    matrix(mixer + "out_proj.weight", spec.d_model, spec.d_inner);
    if (spec.has_proj_bias) add(mixer + "out_proj.bias", {spec.d_model}, 0.0f, 0.3f);
  }
  add("backbone.norm_f.weight", {spec.d_model}, 1.0f, 0.3f);
  if (!spec.is_tied) matrix("lm_head.weight", spec.vocab_size, spec.d_model);
  return tensors;
}

std::string MambaConfigJson(const MambaSpec& spec) {
  const int64_t vocab_size = spec.stated_vocab_size > 0 ? spec.stated_vocab_size : spec.vocab_size;
  nlohmann::json config;
  if (spec.naming == Naming::kStateSpaces) {
    config["d_model"] = spec.d_model;
    config["n_layer"] = spec.num_layers;
    config["vocab_size"] = vocab_size;
    config["ssm_cfg"] = {
        {"layer", "Mamba1"}, {"bias", spec.has_proj_bias}, {"conv_bias", spec.has_conv_bias}};
    config["rms_norm"] = true;
    config["tie_embeddings"] = spec.is_tied;
    return config.dump(2);
  }
  config["architectures"] = {spec.is_falcon ? "FalconMambaForCausalLM" : "MambaForCausalLM"};
  config["model_type"] = spec.is_falcon ? "falcon_mamba" : "mamba";
  config["hidden_size"] = spec.d_model;
  config["intermediate_size"] = spec.d_inner;
  config["expand"] = 16;  // wrong on purpose, as Falcon-Mamba's: shapes win
  config["state_size"] = spec.d_state;
  config["conv_kernel"] = spec.d_conv;
  config["time_step_rank"] = spec.dt_rank;
  config["num_hidden_layers"] = spec.num_layers;
  config["vocab_size"] = vocab_size;
  config["hidden_act"] = "silu";
  config["use_bias"] = spec.has_proj_bias;
  config["use_conv_bias"] = spec.has_conv_bias;
  config["tie_word_embeddings"] = spec.is_tied;
  config["layer_norm_epsilon"] = 1e-5;
  if (spec.is_falcon) config["mixer_rms_eps"] = 1e-6;
  config["bos_token_id"] = 0;
  config["eos_token_id"] = 0;
  config["torch_dtype"] = TorchName(spec.dtype);
  return config.dump(2);
}

void WriteSafetensors(const std::string& path, const std::vector<RandomTensor>& tensors) {
  nlohmann::json header;
  header["__metadata__"] = {{"format", "pt"}};
  size_t offset = 0;
  for (const RandomTensor& tensor : tensors) {
    const size_t bytes = static_cast<size_t>(tensor.Count()) * kernels::DTypeBytes(tensor.dtype);
    header[tensor.name] = {{"dtype", SafetensorsName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  for (int i = 0; i < 8; ++i) out.put(static_cast<char>(text.size() >> (8 * i)));
  out << text;
  for (const RandomTensor& tensor : tensors) out << EncodeValues(tensor.Values(), tensor.dtype);
  out.flush();
  if (!out) {
    std::fprintf(stderr, "%s: cannot write\n", path.c_str());
    std::abort();
  }
}

void WriteMambaModel(const MambaSpec& spec, const std::string& directory) {
  WriteFile(directory + "/config.json", MambaConfigJson(spec));
  const std::vector<RandomTensor> tensors = MambaTensors(spec);
  if (spec.num_shards == 1) {
    WriteSafetensors(directory + "/model.safetensors", tensors);
    return;
  }
  std::vector<std::vector<RandomTensor>> shards(static_cast<size_t>(spec.num_shards));
  nlohmann::json index;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const size_t shard = i * shards.size() / tensors.size();
    shards[shard].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] = "shard-" + std::to_string(shard) + ".safetensors";
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    WriteSafetensors(directory + "/shard-" + std::to_string(i) + ".safetensors", shards[i]);
  }
  WriteFile(directory + "/model.safetensors.index.json", index.dump(2));
}

}  // namespace vivarium::test
