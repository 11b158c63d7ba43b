#include "engine/checkpoint/model_config.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/config_fields.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/tensor_table.h"
#include "kernels/ops.h"

namespace vivarium::engine {
namespace {

constexpr size_t kMaxConfigBytes = 4 << 20;

std::string Join(const std::string& directory, std::string_view name) {
  return absl::StrCat(directory, "/", std::string(name));
}

// The dialect of a config.json.
enum class Dialect { kHuggingFaceMamba, kFalconMamba, kStateSpaces };

absl::StatusOr<Dialect> ReadDialect(const ConfigFields& fields, std::string* architecture) {
  absl::StatusOr<std::string> name = fields.FirstString("architectures", "model_type");
  if (!name.ok()) return name.status();
  *architecture = *name;
  if (*name == "MambaForCausalLM" || *name == "mamba") return Dialect::kHuggingFaceMamba;
  if (*name == "FalconMambaForCausalLM" || *name == "falcon_mamba") return Dialect::kFalconMamba;
  if (name->empty() && fields.Has("d_model") && fields.Has("n_layer")) {
    *architecture = "state-spaces";
    return Dialect::kStateSpaces;
  }
  if (name->empty()) {
    return MalformedField(fields.file(), "architecture",
                          "\"architectures\" or \"model_type\", or state-spaces' \"d_model\" and "
                          "\"n_layer\"",
                          "neither");
  }
  return absl::UnimplementedError(absl::StrCat(
      fields.file(), ": architecture ", Quoted(*name),
      " is not served: expected MambaForCausalLM, FalconMambaForCausalLM or a state-spaces config "
      "of Mamba1 layers"));
}

// A field that must have one value, if it is there, because no other is served.
absl::Status RequireServed(const ConfigFields& fields, const std::string& name,
                           const nlohmann::json& served) {
  const nlohmann::json* found = fields.Find(name);
  if (found == nullptr || found->is_null() || *found == served) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(fields.file(), ": ", name, " = ",
                                               DescribeJson(*found), " is not served: expected ",
                                               served.dump()));
}

// What the dialects say in different words.
struct Stated {
  int64_t num_layers = 0;
  int64_t vocab_size = 0;
  float norm_eps = 1e-5f;
  float mixer_norm_eps = 1e-6f;
  bool tie_embeddings = true;
  std::optional<bool> has_proj_bias;  // in_proj and out_proj
  std::optional<bool> has_conv_bias;
};

absl::Status ReadHuggingFace(const ConfigFields& fields, Stated* stated) {
  absl::Status status = RequireServed(fields, "hidden_act", "silu");
  fields.Int("num_hidden_layers", 1, kMaxLayers, std::nullopt, &stated->num_layers, &status);
  fields.Int("vocab_size", 1, kMaxVocabSize, std::nullopt, &stated->vocab_size, &status);
  fields.Epsilon("layer_norm_epsilon", &stated->norm_eps, &status);
  fields.Epsilon("mixer_rms_eps", &stated->mixer_norm_eps, &status);
  fields.Bool("tie_word_embeddings", &stated->tie_embeddings, &status);
  fields.OptionalBool("use_bias", &stated->has_proj_bias, &status);
  fields.OptionalBool("use_conv_bias", &stated->has_conv_bias, &status);
  return status;
}

// state-spaces/mamba, mamba_ssm/models/config_mamba.py: defaults are those of its MambaConfig.
absl::Status ReadStateSpaces(const ConfigFields& fields, Stated* stated) {
  absl::Status status = RequireServed(fields, "rms_norm", true);
  if (status.ok()) status = RequireServed(fields, "attn_layer_idx", nlohmann::json::array());
  if (status.ok()) status = RequireServed(fields, "d_intermediate", 0);
  fields.Int("n_layer", 1, kMaxLayers, std::nullopt, &stated->num_layers, &status);
  fields.Int("vocab_size", 1, kMaxVocabSize, 50277, &stated->vocab_size, &status);
  fields.Bool("tie_embeddings", &stated->tie_embeddings, &status);
  if (!status.ok()) return status;
  const nlohmann::json* ssm_cfg = fields.Find("ssm_cfg");
  if (ssm_cfg == nullptr || ssm_cfg->is_null()) return absl::OkStatus();
  if (!ssm_cfg->is_object()) {
    return MalformedField(fields.file(), "ssm_cfg", "an object", DescribeJson(*ssm_cfg));
  }
  const ConfigFields ssm(fields.file(), *ssm_cfg);
  status = RequireServed(ssm, "layer", "Mamba1");
  ssm.OptionalBool("bias", &stated->has_proj_bias, &status);
  ssm.OptionalBool("conv_bias", &stated->has_conv_bias, &status);
  return status;
}

// Reads dimensions off the tensors of layer 0, which are authoritative.
class ShapeReader {
 public:
  ShapeReader(const Checkpoint& checkpoint, const std::string& directory)
      : checkpoint_(checkpoint), directory_(directory) {}

  // The tensor, of `rank` dimensions, each at least 1; else an error in status().
  const TensorView* Require(const std::string& name, size_t rank) {
    const TensorView* view = checkpoint_.Find(name);
    if (view == nullptr) {
      const auto skipped = checkpoint_.skipped().find(name);
      Fail(MalformedField(
          directory_, absl::StrCat("tensor ", Quoted(name)), "dtype F32, BF16 or F16",
          skipped == checkpoint_.skipped().end() ? "no such tensor" : skipped->second));
      return nullptr;
    }
    bool is_good = view->shape.size() == rank;
    for (const int64_t extent : view->shape) is_good = is_good && extent >= 1;
    if (!is_good) {
      Fail(MalformedFile(view->file, absl::StrCat("tensor ", Quoted(name)), view->file_offset,
                         absl::StrCat(rank, " dimensions of 1 or more"), ShapeText(view->shape)));
      return nullptr;
    }
    return view;
  }

  void CheckExtent(const TensorView& view, const std::string& name, const std::string& what,
                   int64_t found, int64_t limit) {
    if (found >= 1 && found <= limit) return;
    Fail(MalformedFile(view.file, absl::StrCat(what, " of tensor ", Quoted(name)), view.file_offset,
                       absl::StrCat("1 to ", limit),
                       absl::StrCat(found, ", shape ", ShapeText(view.shape))));
  }

  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const absl::Status& status() const { return status_; }

 private:
  const Checkpoint& checkpoint_;
  const std::string& directory_;
  absl::Status status_;
};

std::string EmbeddingName(const Checkpoint& checkpoint) {
  return checkpoint.Find("backbone.embeddings.weight") == nullptr &&
                 checkpoint.Find("backbone.embedding.weight") != nullptr
             ? "backbone.embedding.weight"
             : "backbone.embeddings.weight";
}

absl::Status ReadDimensions(const Checkpoint& checkpoint, const std::string& directory,
                            ModelConfig* config) {
  ShapeReader reader(checkpoint, directory);
  const std::string mixer = "backbone.layers.0.mixer.";
  const std::string names[] = {EmbeddingName(checkpoint), mixer + "conv1d.weight", mixer + "A_log",
                               mixer + "dt_proj.weight"};
  const TensorView* embedding = reader.Require(names[0], 2);
  const TensorView* conv = reader.Require(names[1], 3);
  const TensorView* a_log = reader.Require(names[2], 2);
  const TensorView* dt_proj = reader.Require(names[3], 2);
  if (!reader.status().ok()) return reader.status();
  config->padded_vocab_size = embedding->shape[0];
  config->d_model = embedding->shape[1];
  config->d_inner = conv->shape[0];
  config->d_conv = conv->shape[2];
  config->d_state = a_log->shape[1];
  config->dt_rank = dt_proj->shape[1];
  reader.CheckExtent(*embedding, names[0], "vocabulary", config->padded_vocab_size, kMaxVocabSize);
  reader.CheckExtent(*embedding, names[0], "d_model", config->d_model, kMaxModelWidth);
  reader.CheckExtent(*conv, names[1], "d_inner", config->d_inner, kMaxModelWidth);
  reader.CheckExtent(*conv, names[1], "d_conv", config->d_conv, kernels::kMaxConvWidth);
  reader.CheckExtent(*a_log, names[2], "d_state", config->d_state, kernels::kMaxStateSize);
  reader.CheckExtent(*dt_proj, names[3], "dt_rank", config->dt_rank, kMaxModelWidth);
  if (config->vocab_size > config->padded_vocab_size) {
    reader.Fail(MalformedFile(
        embedding->file, absl::StrCat("tensor ", Quoted(names[0])), embedding->file_offset,
        absl::StrCat("at least ", config->vocab_size, " rows (vocab_size of config.json)"),
        ShapeText(embedding->shape)));
  }
  return reader.status();
}

// Layers are counted in the file: one more or one less than stated is another model.
absl::Status CheckLayers(const Checkpoint& checkpoint, const std::string& file, int64_t stated) {
  int64_t found = 0;
  while (found <= kMaxLayers &&
         checkpoint.Find(absl::StrCat("backbone.layers.", found, ".norm.weight")) != nullptr) {
    ++found;
  }
  if (found == stated) return absl::OkStatus();
  return MalformedField(file, "number of layers",
                        absl::StrCat(found, " (backbone.layers.0 .. in the weights)"),
                        absl::StrCat(stated));
}

absl::Status CheckBias(const Checkpoint& checkpoint, const std::string& file,
                       const std::string& tensor, std::optional<bool> stated) {
  const std::string name = absl::StrCat("backbone.layers.0.mixer.", tensor);
  const bool found = checkpoint.Find(name) != nullptr;
  if (!stated.has_value() || *stated == found) return absl::OkStatus();
  return MalformedField(file, absl::StrCat("bias switch of tensor ", Quoted(name)),
                        found ? "true (the tensor is there)" : "false (there is no such tensor)",
                        *stated ? "true" : "false");
}

absl::Status CheckAgainstTensors(const Checkpoint& checkpoint, const std::string& file,
                                 const Stated& stated) {
  absl::Status status = CheckLayers(checkpoint, file, stated.num_layers);
  for (const char* tensor : {"in_proj.bias", "out_proj.bias"}) {
    if (status.ok()) status = CheckBias(checkpoint, file, tensor, stated.has_proj_bias);
  }
  if (status.ok()) status = CheckBias(checkpoint, file, "conv1d.bias", stated.has_conv_bias);
  if (status.ok() && !stated.tie_embeddings && checkpoint.Find("lm_head.weight") == nullptr) {
    status = MalformedField(file, "tied embeddings", "true (there is no tensor 'lm_head.weight')",
                            "false");
  }
  return status;
}

// bos_token_id and eos_token_id (one id or a list) of either file.
absl::Status ReadTokenIds(const ConfigFields& fields, ModelConfig* config) {
  absl::Status status;
  const int64_t limit = config->padded_vocab_size - 1;
  std::vector<int32_t> ids;
  if (fields.TokenIds("bos_token_id", limit, &ids, &status) && !ids.empty()) {
    config->bos_token_id = ids.front();
  }
  if (fields.TokenIds("eos_token_id", limit, &ids, &status)) config->eos_token_ids = ids;
  return status;
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory,
                                            const Checkpoint& checkpoint) {
  const std::string path = Join(directory, "config.json");
  absl::StatusOr<nlohmann::json> parsed = ReadJsonObject(path, kMaxConfigBytes);
  if (!parsed.ok()) return parsed.status();
  const ConfigFields fields(path, *parsed);
  ModelConfig config;
  absl::StatusOr<Dialect> dialect = ReadDialect(fields, &config.architecture);
  if (!dialect.ok()) return dialect.status();
  Stated stated;
  absl::Status status = *dialect == Dialect::kStateSpaces ? ReadStateSpaces(fields, &stated)
                                                          : ReadHuggingFace(fields, &stated);
  if (!status.ok()) return status;
  config.vocab_size = stated.vocab_size;
  config.layers.assign(static_cast<size_t>(stated.num_layers), LayerKind::kMamba);
  config.norm_eps = stated.norm_eps;
  config.tie_embeddings = stated.tie_embeddings;
  config.mixer_norms = *dialect == Dialect::kFalconMamba;
  config.mixer_norm_eps = stated.mixer_norm_eps;
  status = ReadDimensions(checkpoint, directory, &config);
  if (status.ok()) status = CheckAgainstTensors(checkpoint, path, stated);
  if (status.ok()) status = ReadTokenIds(fields, &config);
  if (!status.ok()) return status;

  const std::string generation_path = Join(directory, "generation_config.json");
  absl::StatusOr<nlohmann::json> generation = ReadJsonObject(generation_path, kMaxConfigBytes);
  if (generation.ok()) {
    status = ReadTokenIds(ConfigFields(generation_path, *generation), &config);
  } else if (!absl::IsNotFound(generation.status())) {
    status = generation.status();
  }
  if (!status.ok()) return status;
  return config;
}

absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(const std::string& directory) {
  const std::string path = Join(directory, "generation_config.json");
  absl::StatusOr<nlohmann::json> parsed = ReadJsonObject(path, kMaxConfigBytes);
  GenerationDefaults defaults;
  if (absl::IsNotFound(parsed.status())) return defaults;
  if (!parsed.ok()) return parsed.status();
  const ConfigFields fields(path, *parsed);
  absl::Status status;
  fields.OptionalFloat("temperature", 0.0, 1e6, &defaults.temperature, &status);
  fields.OptionalFloat("top_p", 0.0, 1.0, &defaults.top_p, &status);
  fields.OptionalFloat("repetition_penalty", 1e-6, 1e6, &defaults.repetition_penalty, &status);
  fields.OptionalBool("do_sample", &defaults.do_sample, &status);
  int64_t top_k = -1;
  fields.Int("top_k", 0, INT32_MAX, -1, &top_k, &status);
  if (top_k >= 0) defaults.top_k = static_cast<int32_t>(top_k);
  if (!status.ok()) return status;
  return defaults;
}

}  // namespace vivarium::engine
