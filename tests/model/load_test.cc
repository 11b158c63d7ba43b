// Loading a model: what is refused, what is held, what identifies it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/model/fingerprint.h"
#include "engine/model/model.h"
#include "engine/model/state_view.h"
#include "tests/model/limited_backend.h"
#include "tests/support/mamba_files.h"
#include "tests/support/temp_dir.h"
#include "tests/support/torch_files.h"

namespace vivarium::engine {
namespace {

using test::MambaSpec;
using test::Naming;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

class LoadTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = kernels::Backend::Create("cpu", {1, ""}, &error);
    ASSERT_NE(backend_, nullptr) << error;
  }
  absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& directory,
                                              const ModelOptions& options = {}) {
    auto checkpoint = Checkpoint::Open(directory);
    if (!checkpoint.ok()) return checkpoint.status();
    auto config = LoadModelConfig(directory, **checkpoint);
    if (!config.ok()) return config.status();
    return Model::Load(**checkpoint, *config, backend_.get(), options);
  }
  absl::StatusOr<std::unique_ptr<Model>> Load(const MambaSpec& spec,
                                              const ModelOptions& options = {}) {
    const TempDir directory;
    WriteMambaModel(spec, directory.path());
    return Load(directory.path(), options);
  }
  std::string Fingerprint(const MambaSpec& spec) {
    const auto model = Load(spec);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? std::string((*model)->fingerprint()) : "";
  }

  std::unique_ptr<kernels::Backend> backend_;
};

TEST_F(LoadTest, FingerprintDependsOnTheWeightsOnly) {
  const MambaSpec spec;
  const std::string fingerprint = Fingerprint(spec);
  EXPECT_EQ(fingerprint.size(), 32u);
  MambaSpec same = spec;
  same.num_shards = 3;
  EXPECT_EQ(Fingerprint(same), fingerprint);
  same.stated_vocab_size = 35;
  EXPECT_EQ(Fingerprint(same), fingerprint);

  // state-spaces' naming, as a torch file, with the head that shares the embedding's storage.
  // The values follow from the names, so the tensors are renamed after they are made.
  const TempDir directory;
  MambaSpec renamed = spec;
  renamed.naming = Naming::kStateSpaces;
  test::WriteFile(directory.File("config.json"), MambaConfigJson(renamed));
  const std::vector<test::RandomTensor> tensors = MambaTensors(spec);
  std::vector<test::PickleEntry> entries = TorchEntries(tensors);
  ASSERT_EQ(entries[0].name, "backbone.embeddings.weight");
  entries[0].name = "backbone.embedding.weight";
  entries.push_back(entries[0]);
  entries.back().name = "lm_head.weight";
  test::WriteFile(directory.File("pytorch_model.bin"),
                  test::MakeZip(TorchMembers(tensors, test::MakePickle(entries)), false));
  const auto model = Load(directory.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->fingerprint(), fingerprint);
}

TEST_F(LoadTest, FingerprintDependsOnEveryBitAndDimension) {
  const MambaSpec spec;
  std::vector<std::string> all = {Fingerprint(spec)};
  const auto add = [&](auto change) {
    MambaSpec other = spec;
    change(&other);
    all.push_back(Fingerprint(other));
  };
  add([](MambaSpec* s) { s->seed = 2; });
  add([](MambaSpec* s) { s->dtype = kernels::DType::kBF16; });
  add([](MambaSpec* s) { s->dtype = kernels::DType::kF16; });
  add([](MambaSpec* s) { s->num_layers = 1; });
  add([](MambaSpec* s) { s->is_falcon = true; });
  add([](MambaSpec* s) { s->is_tied = false; });
  add([](MambaSpec* s) { s->has_proj_bias = true; });
  add([](MambaSpec* s) { s->has_conv_bias = false; });

  // One bit, in each tensor in turn.
  const TempDir directory;
  WriteMambaModel(spec, directory.path());
  const std::string good = test::ReadFile(directory.File("model.safetensors"));
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok());
  for (const auto& [name, view] : (*checkpoint)->tensors()) {
    const TempDir changed;
    std::filesystem::copy(directory.File("config.json"), changed.path());
    std::string bad = good;
    bad[view.file_offset + view.data.size() / 2] ^= 1;
    test::WriteFile(changed.File("model.safetensors"), bad);
    const auto model = Load(changed.path());
    ASSERT_TRUE(model.ok()) << model.status();
    all.emplace_back((*model)->fingerprint());
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());

  // And the norms' constant, which is no tensor.
  const TempDir eps;
  WriteMambaModel(spec, eps.path());
  auto config = nlohmann::json::parse(MambaConfigJson(spec));
  config["layer_norm_epsilon"] = 1e-6;
  test::WriteFile(eps.File("config.json"), config.dump());
  const auto model = Load(eps.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_NE((*model)->fingerprint(), Fingerprint(spec));
}

TEST_F(LoadTest, NumericsIdNamesTheWeightDType) {
  MambaSpec spec;
  ModelOptions options;
  const auto id = [&](kernels::DType file, WeightFormat format) {
    spec.dtype = file;
    options.weights = format;
    const auto model = Load(spec, options);
    EXPECT_TRUE(model.ok()) << model.status();
    return std::string((*model)->numerics_id());
  };
  const std::string backend = backend_->numerics_name();
  EXPECT_EQ(id(kernels::DType::kF32, WeightFormat::kAuto), backend + "-wf32");
  EXPECT_EQ(id(kernels::DType::kBF16, WeightFormat::kAuto), backend + "-wbf16");
  EXPECT_EQ(id(kernels::DType::kF16, WeightFormat::kAuto), backend + "-wbf16");
  EXPECT_EQ(id(kernels::DType::kF32, WeightFormat::kBF16), backend + "-wbf16");
  EXPECT_EQ(id(kernels::DType::kBF16, WeightFormat::kF32), backend + "-wf32");
}

TEST_F(LoadTest, StateLayoutIsOneAlignedSpan) {
  const auto model = Load(MambaSpec());
  ASSERT_TRUE(model.ok()) << model.status();
  const StateLayout& layout = (*model)->state_layout();
  ASSERT_EQ(layout.parts.size(), 4u);
  const char* names[] = {"layers.0.conv", "layers.0.ssm", "layers.1.conv", "layers.1.ssm"};
  uint64_t end = 0;
  for (size_t i = 0; i < 4; ++i) {
    const StatePart& part = layout.parts[i];
    EXPECT_EQ(part.name, names[i]);
    EXPECT_EQ(part.offset_bytes % 64, 0u);
    EXPECT_EQ(part.offset_bytes, (end + 63) / 64 * 64);
    const std::vector<int64_t> shape =
        i % 2 == 0 ? std::vector<int64_t>{3, 24} : std::vector<int64_t>{2, 5, 16};
    EXPECT_EQ(part.shape, shape);
    EXPECT_EQ(part.size_bytes, i % 2 == 0 ? 3 * 24 * 4u : 2 * 5 * 16 * 4u);
    end = part.offset_bytes + part.size_bytes;
  }
  EXPECT_EQ(layout.slot_bytes, (end + 63) / 64 * 64);
}

TEST_F(LoadTest, WrongShapesNameTensorExpectedAndFound) {
  for (const char* name : {"norm.weight", "mixer.in_proj.weight", "mixer.conv1d.bias",
                           "mixer.x_proj.weight", "mixer.dt_proj.bias", "mixer.D",
                           "mixer.out_proj.weight", "mixer.A_log", "mixer.conv1d.weight"}) {
    const TempDir directory;
    const MambaSpec spec;
    WriteMambaModel(spec, directory.path());
    std::vector<test::RandomTensor> tensors = MambaTensors(spec);
    // In layer 1: layer 0 is where the dimensions come from.
    const std::string full_name = std::string("backbone.layers.1.") + name;
    for (test::RandomTensor& tensor : tensors) {
      if (tensor.name == full_name) ++tensor.shape.back();
    }
    test::WriteSafetensors(directory.File("model.safetensors"), tensors);
    const auto model = Load(directory.path());
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(model.status().message()),
                AllOf(HasSubstr("model.safetensors: tensor '" + full_name + "' at byte"),
                      HasSubstr("expected shape ["), HasSubstr("found [")));
    std::erase_if(tensors, [&](const auto& tensor) { return tensor.name == full_name; });
    test::WriteSafetensors(directory.File("model.safetensors"), tensors);
    const auto without = Load(directory.path());
    if (std::string(name) == "mixer.conv1d.bias") continue;  // may be absent
    EXPECT_THAT(without.status().ToString(),
                HasSubstr(name == std::string("norm.weight") ? "number of layers"
                                                             : "found no such tensor"));
  }
}

TEST_F(LoadTest, OptionsAreBounded) {
  for (const int32_t value : {0, -1, kMaxBatchRows + 1}) {
    ModelOptions options;
    options.max_batch_tokens = value;
    EXPECT_THAT(Load(MambaSpec(), options).status().ToString(),
                HasSubstr("max_batch_tokens: expected 1 to 65536, found " + std::to_string(value)));
    options = ModelOptions();
    options.max_logit_rows = value;
    EXPECT_THAT(Load(MambaSpec(), options).status().ToString(), HasSubstr("max_logit_rows"));
  }
  ModelOptions options;
  options.max_batch_tokens = kMaxBatchRows;
  options.max_logit_rows = 1;
  const auto model = Load(MambaSpec(), options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->max_batch_tokens(), kMaxBatchRows);
  EXPECT_EQ((*model)->max_logit_rows(), 1);
}

// Memory may end at any allocation: always the same kind of error, and nothing leaks.
TEST_F(LoadTest, SaysHowMuchMemoryIsMissing) {
  MambaSpec spec;
  spec.is_tied = false;
  const TempDir directory;
  WriteMambaModel(spec, directory.path());
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok());
  const auto config = LoadModelConfig(directory.path(), **checkpoint);
  ASSERT_TRUE(config.ok());
  size_t num_failures = 0;
  for (size_t max_bytes = 0;; max_bytes += 500) {
    test::LimitedBackend limited(backend_.get(), max_bytes);
    auto model =
        Model::Load(**checkpoint, *config, &limited,
                    {.weights = WeightFormat::kF32, .max_batch_tokens = 2, .max_logit_rows = 2});
    if (model.ok()) {
      EXPECT_LE((*model)->weight_bytes() + (*model)->activation_bytes(), max_bytes);
      EXPECT_GT((*model)->weight_bytes() + (*model)->activation_bytes(), max_bytes - 500);
      model->reset();
      EXPECT_EQ(limited.num_live(), 0u);
      break;
    }
    ++num_failures;
    ASSERT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted) << model.status();
    EXPECT_THAT(std::string(model.status().message()),
                AllOf(HasSubstr("no device memory left for "), HasSubstr("it needs ")));
    EXPECT_EQ(limited.num_live(), 0u);
  }
  EXPECT_GT(num_failures, 20u);
}

TEST_F(LoadTest, StateViewRefusesWhatIsNotOfTheModel) {
  const auto model = Load(MambaSpec());
  ASSERT_TRUE(model.ok());
  const ModelConfig& config = (*model)->config();
  const StateLayout& layout = (*model)->state_layout();
  std::vector<std::byte> slot(layout.slot_bytes);
  const auto error = [&](const StateLayout& l, std::span<const std::byte> s, int64_t layer) {
    return ReadLayerState(config, l, s, layer).status().ToString();
  };
  EXPECT_EQ(error(layout, slot, 1), "OK");
  EXPECT_THAT(error(layout, slot, 2), HasSubstr("expected 0 to 1, found 2"));
  EXPECT_THAT(error(layout, slot, -1), HasSubstr("found -1"));
  EXPECT_THAT(error(layout, std::span(slot).first(slot.size() - 1), 0), HasSubstr("bytes, found"));
  StateLayout other = layout;
  other.parts[0].shape = {24, 3};
  EXPECT_THAT(error(other, slot, 0), HasSubstr("layers.0.conv"));
  other = layout;
  other.parts.pop_back();
  EXPECT_THAT(error(other, slot, 1), HasSubstr("layers.1."));
  MambaLayerState state;
  EXPECT_THAT(WriteLayerState(config, layout, 0, state, slot).ToString(),
              HasSubstr("expected 72 and 120 elements, found 0 and 0"));
}

}  // namespace
}  // namespace vivarium::engine
