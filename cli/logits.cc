// `vivarium logits`: a model's logits for given tokens, computed here, without a server.
#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/npy.h"
#include "cli/output.h"
#include "cli/paths.h"
#include "cli/token_ids.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/model_config.h"
#include "engine/model/model.h"
#include "engine/model/state_view.h"
#include "kernels/backend.h"

namespace vivarium::cli {
namespace {

constexpr int32_t kMaxPrefillChunk = 1 << 16;

constexpr char kFooter[] =
    "Writes float32 [number of tokens, vocabulary] in NumPy's .npy format: row t is the "
    "prediction\n"
    "after token t. --state-out writes the recurrent state after the last token, per layer:\n"
    "layerN.conv_state.npy [d_inner, d_conv - 1], oldest column first, and layerN.ssm_state.npy\n"
    "[d_inner, d_state]. Needs config.json and weights, no tokenizer.\n"
    "\n"
    "Example:\n"
    "  vivarium logits --model DIR --tokens 1,2,3 --weights f32 --out logits.npy --state-out "
    "states";

// One slot of device memory.
class Slot {
 public:
  Slot(kernels::Backend* backend, size_t bytes)
      : backend_(backend), data_(static_cast<std::byte*>(backend->Allocate(bytes))) {}
  ~Slot() { backend_->Free(data_); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  std::byte* data() { return data_; }

 private:
  kernels::Backend* backend_;
  std::byte* data_;
};

class LogitsCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("logits", "Compute a model's logits for given tokens");
    app->add_option("--model", model_dir_, "Model directory; default: the bundled model")
        ->type_name("DIR");
    app->add_option("--tokens", tokens_, "Token ids: 1,2,3 or @FILE")->type_name("IDS")->required();
    app->add_option("--out", out_, "Where the logits go")->type_name("FILE.npy")->required();
    app->add_option("--state-out", state_out_, "Directory for the state after the last token")
        ->type_name("DIR");
    app->add_option("--device", device_, "Where to compute")
        ->type_name("DEVICE")
        ->capture_default_str();
    app->add_option("--weights", weights_, "How weights are held")
        ->transform(
            CLI::CheckedTransformer(std::vector<std::pair<std::string, engine::WeightFormat>>{
                {"auto", engine::WeightFormat::kAuto},
                {"bf16", engine::WeightFormat::kBF16},
                {"f32", engine::WeightFormat::kF32},
                {"int8", engine::WeightFormat::kInt8}}))
        ->option_text("auto|bf16|f32|int8");
    app->add_option("--isa", backend_options_.isa,
                    "CPU instructions: portable, avx2, avx512; default: the best")
        ->type_name("ISA");
    app->add_flag("--deterministic", backend_options_.deterministic,
                  "On CUDA: bits that don't depend on the chunks, as always on the CPU");
    app->add_option("--threads", backend_options_.num_threads, "CPU threads; 0 = one per core")
        ->type_name("N")
        ->check(CLI::Range(0, kernels::kMaxThreads));
    app->add_option("--prefill-chunk", chunk_tokens_, "Tokens of one step; changes no bit")
        ->type_name("N")
        ->check(CLI::Range(1, kMaxPrefillChunk))
        ->capture_default_str();
    app->footer(kFooter);
    return app;
  }

  int Run() override {
    const auto tokens = ReadTokenIds(tokens_);
    if (!tokens.ok()) return FailLocally(tokens.status());
    if (tokens->empty()) return Fail(kExitUsage, "--tokens is empty; expected at least one id");
    if (absl::Status status = Load(); !status.ok()) return FailLocally(status);
    const int64_t vocab = model_->config().padded_vocab_size;
    for (size_t i = 0; i < tokens->size(); ++i) {
      if ((*tokens)[i] >= vocab) {
        return Fail(kExitUsage, absl::StrCat("token ids: number ", i + 1, " is ", (*tokens)[i],
                                             ", expected less than ", vocab));
      }
    }
    Slot slot(backend_.get(), model_->state_layout().slot_bytes);
    if (slot.data() == nullptr) return Fail(kExitLocalError, "no memory left for one state");
    absl::Status status = WriteLogits(*tokens, slot.data());
    if (status.ok() && !state_out_.empty()) status = WriteState(slot.data());
    return status.ok() ? kExitOk : FailLocally(status);
  }

 private:
  absl::Status Load() {
    const std::string dir = model_dir_.empty() ? BundledModelDir() : model_dir_;
    if (dir.empty())
      return absl::NotFoundError("no bundled model found; name one with --model DIR");
    const auto checkpoint = engine::Checkpoint::Open(dir);
    if (!checkpoint.ok()) return checkpoint.status();
    const auto config = engine::LoadModelConfig(dir, **checkpoint);
    if (!config.ok()) return config.status();
    std::string error;
    backend_ = kernels::Backend::Create(device_, backend_options_, &error);
    if (backend_ == nullptr) return absl::InvalidArgumentError(error);
    auto model = engine::Model::Load(
        **checkpoint, *config, backend_.get(),
        {.weights = weights_, .max_batch_tokens = chunk_tokens_, .max_logit_rows = chunk_tokens_});
    if (!model.ok()) return model.status();
    model_ = *std::move(model);
    return absl::OkStatus();
  }

  absl::Status WriteLogits(std::span<const int32_t> tokens, std::byte* slot) {
    const int64_t vocab = model_->config().padded_vocab_size;
    auto file = NpyWriter::Create(out_, {static_cast<int64_t>(tokens.size()), vocab});
    if (!file.ok()) return file.status();
    std::vector<int32_t> rows(static_cast<size_t>(chunk_tokens_));
    std::iota(rows.begin(), rows.end(), 0);
    std::vector<float> logits;
    Progress progress("computing", tokens.size() * sizeof(float) * vocab);
    for (size_t begin = 0; begin < tokens.size(); begin += rows.size()) {
      const size_t size = std::min(rows.size(), tokens.size() - begin);
      const kernels::Segment segment{.token_begin = 0,
                                     .num_tokens = static_cast<int32_t>(size),
                                     .read_slot = begin == 0 ? kernels::kPadSlot : 0,
                                     .write_slot = 0};
      const float* device_logits =
          model_->Forward({.token_ids = tokens.subspan(begin, size),
                           .segments = {&segment, 1},
                           .logit_rows = std::span<const int32_t>(rows).first(size)},
                          slot);
      logits.resize(size * static_cast<size_t>(vocab));
      backend_->CopyToHost(logits.data(), device_logits, logits.size() * sizeof(float));
      if (absl::Status status = (*file)->Append(logits); !status.ok()) return status;
      progress.Advance(logits.size() * sizeof(float));
    }
    return (*file)->Finish();
  }

  absl::Status WriteState(const std::byte* device_slot) const {
    std::error_code error;
    std::filesystem::create_directories(state_out_, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot make directory ", state_out_, ": ", error.message()));
    }
    const engine::ModelConfig& config = model_->config();
    const engine::StateLayout& layout = model_->state_layout();
    engine::StateBuffer slot(layout.slot_bytes);
    backend_->CopyToHost(slot.data(), device_slot, layout.slot_bytes);
    for (int64_t i = 0; i < static_cast<int64_t>(config.layers.size()); ++i) {
      const auto state = engine::ReadLayerState(config, layout, slot.span(), i);
      if (!state.ok()) return state.status();
      const std::string prefix = absl::StrCat(state_out_, "/layer", i);
      absl::Status status = WriteNpy(prefix + ".conv_state.npy",
                                     {config.d_inner, config.d_conv - 1}, state->conv_state);
      if (status.ok()) {
        status =
            WriteNpy(prefix + ".ssm_state.npy", {config.d_inner, config.d_state}, state->ssm_state);
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  std::string model_dir_, tokens_, out_, state_out_, device_ = "cpu";
  engine::WeightFormat weights_ = engine::WeightFormat::kAuto;
  kernels::BackendOptions backend_options_;
  int32_t chunk_tokens_ = 128;
  std::unique_ptr<kernels::Backend> backend_;  // before the model, which must not outlive it
  std::unique_ptr<engine::Model> model_;
};

}  // namespace

Commands MakeLogitsCommands() {
  Commands commands;
  commands.push_back(std::make_unique<LogitsCommand>());
  return commands;
}

}  // namespace vivarium::cli
