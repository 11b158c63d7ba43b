// `vivarium model inspect`: what is in a model directory; `vivarium model quantize`: its int8 twin.
#include "engine/model/model.h"

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/paths.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/model_config.h"
#include "engine/model/fingerprint.h"
#include "engine/model/quantize_checkpoint.h"
#include "engine/text/chat.h"
#include "engine/text/tokenizer.h"
#include "kernels/dtype.h"

namespace vivarium::cli {
namespace {

int64_t NumElements(const engine::TensorView& tensor) {
  int64_t count = 1;
  for (int64_t dimension : tensor.shape) count *= dimension;
  return count;
}

Json TensorsJson(const engine::Checkpoint& checkpoint) {
  Json array = Json::array();
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    array.push_back({{"name", name},
                     {"dtype", std::string(kernels::DTypeName(tensor.dtype))},
                     {"shape", tensor.shape},
                     {"bytes", tensor.data.size()},
                     {"file", tensor.file},
                     {"offset", tensor.file_offset}});
  }
  return array;
}

// What a slot takes, and a stored state without compression.
uint64_t StateBytes(const engine::ModelConfig& config, kernels::DType state_dtype) {
  return engine::MakeStateLayout(config, state_dtype).slot_bytes;
}

// The model's facts by name, as both outputs show them.
Json ModelJson(const std::string& dir, const engine::Checkpoint& checkpoint,
               const engine::ModelConfig& config) {
  int64_t num_parameters = 0;
  uint64_t file_bytes = 0;
  std::map<std::string, int64_t> dtypes;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    num_parameters += NumElements(tensor);
    file_bytes += tensor.data.size();
    dtypes[std::string(kernels::DTypeName(tensor.dtype))] += NumElements(tensor);
  }
  Json object = {{"directory", dir},
                 {"architecture", config.architecture},
                 {"fingerprint", engine::ModelFingerprint(checkpoint, config)},
                 {"num_parameters", num_parameters},
                 {"parameters_by_dtype", dtypes},
                 {"state_bytes",
                  {{"f32", StateBytes(config, kernels::DType::kF32)},
                   {"bf16", StateBytes(config, kernels::DType::kBF16)}}},
                 {"weight_bytes", file_bytes},
                 {"num_tensors", checkpoint.tensors().size()},
                 {"num_layers", config.layers.size()},
                 {"d_model", config.d_model},
                 {"d_inner", config.d_inner},
                 {"d_state", config.d_state},
                 {"d_conv", config.d_conv},
                 {"dt_rank", config.dt_rank},
                 {"vocab_size", config.vocab_size},
                 {"padded_vocab_size", config.padded_vocab_size},
                 {"tie_embeddings", config.tie_embeddings},
                 {"norm_eps", config.norm_eps},
                 {"state_values", static_cast<int64_t>(config.layers.size()) * config.d_inner *
                                      (config.d_state + config.d_conv - 1)},
                 {"eos_token_ids", config.eos_token_ids}};
  if (config.bos_token_id) object["bos_token_id"] = *config.bos_token_id;
  return object;
}

// A directory without a tokenizer is legal: then there is none in the output.
Json TokenizerJson(const engine::Tokenizer& tokenizer) {
  const auto format = engine::ChatFormat::ForTemplate(tokenizer.chat_template());
  return {{"hash", tokenizer.content_hash()},
          {"vocab_size", tokenizer.vocab_size()},
          {"add_bos_token", tokenizer.add_bos_token()},
          {"chat_format", format.ok() ? Json(format->name()) : Json(nullptr)}};
}

class ModelInspectCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app =
        parent->add_subcommand("inspect", "Show and check what a model directory holds");
    app->add_option("DIR", dir_, "The directory; default: the bundled model");
    app->add_flag("--tensors", tensors_, "List every tensor");
    json_.Declare(app, "it all");
    return app;
  }

  int Run() override {
    const std::string dir = dir_.empty() ? BundledModelDir() : dir_;
    if (dir.empty()) return Fail(kExitUsage, "no bundled model found; name a directory");
    const auto checkpoint = engine::Checkpoint::Open(dir);
    if (!checkpoint.ok()) return FailLocally(checkpoint.status());
    const auto config = engine::LoadModelConfig(dir, **checkpoint);
    if (!config.ok()) return FailLocally(config.status());
    Json object = ModelJson(dir, **checkpoint, *config);
    const auto tokenizer = engine::Tokenizer::Load(dir);
    if (tokenizer.ok()) {
      object["tokenizer"] = TokenizerJson(**tokenizer);
    } else if (tokenizer.status().code() != absl::StatusCode::kNotFound) {
      return FailLocally(tokenizer.status());
    }
    if (tensors_) object["tensors"] = TensorsJson(**checkpoint);
    if (json_.json) {
      PrintJson(object);
    } else {
      PrintForPeople(object);
    }
    return kExitOk;
  }

 private:
  static void PrintForPeople(const Json& object) {
    std::string text;
    for (const auto& [name, value] : object.items()) {
      if (name == "tensors") continue;
      std::string shown = value.is_string() ? value.get<std::string>() : value.dump();
      if (name == "num_parameters") shown = FormatCount(value.get<uint64_t>());
      if (name == "weight_bytes") shown = FormatBytes(value.get<uint64_t>());
      absl::StrAppendFormat(&text, "%-20s %s\n", name, shown);
    }
    PrintNow(text);
    if (!object.contains("tensors")) return;
    Table table({{"TENSOR"}, {"DTYPE"}, {"SHAPE"}, {"BYTES", true}});
    for (const Json& tensor : object["tensors"]) {
      table.Add({tensor["name"], tensor["dtype"], tensor["shape"].dump(),
                 FormatCount(tensor["bytes"].get<uint64_t>())});
    }
    PrintNow("\n" + table.Render());
  }

  std::string dir_;
  bool tensors_ = false;
  JsonFlag json_;
};

class ModelQuantizeCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand(
        "quantize",
        "Write a model with int8 weights, half the size, that loads with the same bits "
        "as the original with --weights int8");
    app->add_option("SRC", source_, "The model's directory")->required();
    app->add_option("DST", destination_, "The directory to make; must not exist")->required();
    json_.Declare(app, "what was written");
    return app;
  }

  int Run() override {
    const auto written = engine::QuantizeCheckpoint(source_, destination_);
    if (!written.ok()) return FailLocally(written.status());
    if (json_.json) {
      PrintJson({{"directory", destination_},
                 {"fingerprint", written->fingerprint},
                 {"num_quantized", written->num_quantized},
                 {"source_bytes", written->source_bytes},
                 {"weight_bytes", written->bytes}});
    } else {
      PrintNow(
          absl::StrFormat("%s: %d matrices as int8, %s of weights, before %s; fingerprint %s\n",
                          destination_, written->num_quantized, FormatBytes(written->bytes),
                          FormatBytes(written->source_bytes), written->fingerprint));
    }
    return kExitOk;
  }

 private:
  std::string source_, destination_;
  JsonFlag json_;
};

}  // namespace

Commands MakeModelCommands() {
  Commands commands;
  commands.push_back(std::make_unique<ModelInspectCommand>());
  commands.push_back(std::make_unique<ModelQuantizeCommand>());
  return commands;
}

}  // namespace vivarium::cli
