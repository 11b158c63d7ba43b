// Int8 checkpoints: written, read back, and refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/model/quantize_checkpoint.h"
#include "tests/support/mamba_files.h"
#include "tests/support/model_harness.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_environment.h"

namespace vivarium {
namespace {

using engine::QuantizeCheckpoint;
using engine::WeightFormat;
using test::MambaSpec;
using test::ModelHarness;
using test::TempDir;
using ::testing::HasSubstr;

std::unique_ptr<ModelHarness> Load(const std::string& directory, WeightFormat weights,
                                   const std::string& isa = "") {
  test::HarnessOptions options;
  options.isa = isa;
  options.weights = weights;
  auto harness = ModelHarness::Load(directory, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? *std::move(harness) : nullptr;
}

std::vector<MambaSpec> Specs() {
  MambaSpec tied, untied, state_spaces, falcon, sharded;
  untied.is_tied = false;
  untied.dtype = kernels::DType::kBF16;
  state_spaces.naming = test::Naming::kStateSpaces;
  state_spaces.dtype = kernels::DType::kF16;
  falcon.is_falcon = true;
  falcon.has_proj_bias = true;
  sharded.num_shards = 3;
  return {tied, untied, state_spaces, falcon, sharded};
}

TEST(QuantizeCheckpointTest, SameBitsAsQuantisingAtLoad) {
  for (const MambaSpec& spec : Specs()) {
    const TempDir directory;
    const std::string source = directory.path() + "/source";
    const std::string destination = directory.path() + "/int8";
    std::filesystem::create_directory(source);
    WriteMambaModel(spec, source);
    std::ofstream(source + "/tokenizer.json") << "{}";
    const auto written = QuantizeCheckpoint(source, destination + "/");
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_EQ(written->num_quantized, 2 * spec.num_layers + 1);
    EXPECT_LT(written->bytes, written->source_bytes);
    EXPECT_FALSE(std::filesystem::exists(destination + ".part"));
    EXPECT_EQ(test::ReadFile(destination + "/tokenizer.json"), "{}");
    const auto config = nlohmann::json::parse(test::ReadFile(destination + "/config.json"));
    EXPECT_EQ(config["quantization_config"]["quant_method"], "vivarium-int8");

    const auto at_load = Load(source, WeightFormat::kInt8);
    const auto from_file = Load(destination, WeightFormat::kAuto);
    const auto named = Load(destination, WeightFormat::kInt8);
    ASSERT_TRUE(at_load != nullptr && from_file != nullptr && named != nullptr);
    EXPECT_NE(at_load->model().fingerprint(), from_file->model().fingerprint());
    EXPECT_EQ(written->fingerprint, from_file->model().fingerprint());
    EXPECT_EQ(at_load->model().numerics_id(), from_file->model().numerics_id());
    EXPECT_THAT(std::string(at_load->model().numerics_id()), HasSubstr("-wint8-"));
    EXPECT_EQ(at_load->model().weight_bytes(), from_file->model().weight_bytes());
    const std::vector<int32_t> tokens = {1, 5, 9, 30, 2, 2, 7};
    const std::vector<float> expected = at_load->Feed(tokens, 0, 3);
    EXPECT_EQ(expected, from_file->Feed(tokens, 0, 3));
    EXPECT_EQ(expected, named->Feed(tokens, 0, 3));
    EXPECT_NE(expected, Load(source, WeightFormat::kAuto)->Feed(tokens, 0, 3));
  }
}

TEST(QuantizeCheckpointTest, SameFingerprintForBothNamings) {
  const TempDir directory;
  const std::string goldens = test::RootDir() + "/tests/data/goldens/";
  const auto one = QuantizeCheckpoint(goldens + "tiny-mamba", directory.path() + "/one");
  const auto other =
      QuantizeCheckpoint(goldens + "tiny-mamba-statespaces-naming", directory.path() + "/other");
  ASSERT_TRUE(one.ok() && other.ok()) << one.status() << other.status();
  EXPECT_EQ(one->fingerprint, other->fingerprint);
}

class RefusalTest : public testing::Test {
 protected:
  RefusalTest() {
    std::filesystem::create_directory(source_);
    WriteMambaModel(MambaSpec(), source_);
  }
  // The error of quantising `source` to `destination`; nothing may be left of the attempt.
  static absl::Status Refused(const std::string& source, const std::string& destination) {
    const bool existed = std::filesystem::exists(destination);
    const absl::Status status = QuantizeCheckpoint(source, destination).status();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(std::filesystem::exists(destination), existed);
    return status;
  }

  const TempDir directory_;
  const std::string source_ = directory_.path() + "/source";
  const std::string destination_ = directory_.path() + "/int8";
};

TEST_F(RefusalTest, ExistingDestination) {
  std::filesystem::create_directory(destination_);
  EXPECT_EQ(Refused(source_, destination_).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(std::filesystem::is_empty(destination_));
  const std::string other = directory_.path() + "/other";
  std::filesystem::create_directory(other + ".part");
  EXPECT_THAT(Refused(source_, other).ToString(), HasSubstr(".part: expected a directory"));
  EXPECT_TRUE(std::filesystem::exists(other + ".part"));
  EXPECT_EQ(Refused(source_, directory_.path() + "/no/such").code(), absl::StatusCode::kNotFound);
}

TEST_F(RefusalTest, QuantisedAlready) {
  ASSERT_TRUE(QuantizeCheckpoint(source_, destination_).ok());
  const absl::Status status = Refused(destination_, directory_.path() + "/twice");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.ToString(), HasSubstr("found I8: quantised already"));
  // Or by the word of its config alone.
  std::string config = test::ReadFile(source_ + "/config.json");
  config.insert(config.find('{') + 1, R"("quantization_config": {"quant_method": "gptq"},)");
  std::ofstream(source_ + "/config.json") << config;
  EXPECT_THAT(Refused(source_, directory_.path() + "/other").ToString(), HasSubstr("gptq"));
}

TEST_F(RefusalTest, NotFiniteWeights) {
  std::string file = test::ReadFile(source_ + "/model.safetensors");
  const auto checkpoint = engine::Checkpoint::Open(source_);
  ASSERT_TRUE(checkpoint.ok());
  const auto* view = (*checkpoint)->Find("backbone.layers.1.mixer.out_proj.weight");
  ASSERT_NE(view, nullptr);
  const float infinity = INFINITY;
  file.replace(view->file_offset + (3 * 24 + 5) * sizeof(float), sizeof(float),
               reinterpret_cast<const char*>(&infinity), sizeof(float));
  const std::string bad = directory_.path() + "/bad";
  std::filesystem::create_directory(bad);
  std::filesystem::copy(source_ + "/config.json", bad);
  std::ofstream(bad + "/model.safetensors", std::ios::binary) << file;
  EXPECT_THAT(Refused(bad, destination_).ToString(), HasSubstr("out_proj.weight', row 3 at byte"));
  EXPECT_FALSE(std::filesystem::exists(destination_ + ".part"));
}

TEST_F(RefusalTest, LargeSideFile) {
  std::ofstream(source_ + "/big.json").close();
  std::filesystem::resize_file(source_ + "/big.json", engine::kMaxSideFileBytes);
  EXPECT_TRUE(QuantizeCheckpoint(source_, destination_).ok());
  std::filesystem::resize_file(source_ + "/big.json", engine::kMaxSideFileBytes + 1);
  EXPECT_THAT(Refused(source_, directory_.path() + "/other").ToString(), HasSubstr("big.json"));
}

// An int8 file is loaded as what it is, whole, or not at all.
TEST_F(RefusalTest, LoadOfAnInt8File) {
  ASSERT_TRUE(QuantizeCheckpoint(source_, destination_).ok());
  const auto error = [&](WeightFormat weights) {
    test::HarnessOptions options;
    options.weights = weights;
    return ModelHarness::Load(destination_, options).status().ToString();
  };
  for (const WeightFormat weights : {WeightFormat::kF32, WeightFormat::kBF16}) {
    EXPECT_THAT(error(weights), HasSubstr("expected dtype F32, BF16 or F16, found I8"));
  }
  const std::string path = destination_ + "/model.safetensors";
  const std::string file = test::ReadFile(path);
  const auto replace = [&](const std::string& from, const std::string& to) {
    std::string changed = file;
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos);
    changed.replace(at, from.size(), to);
    std::ofstream(path, std::ios::binary) << changed;
  };
  replace("layers.1.mixer.in_proj.weight_scale", "layers.1.mixer.in_proj.weight_other");
  EXPECT_THAT(error(WeightFormat::kAuto),
              HasSubstr("tensor 'backbone.layers.1.mixer.in_proj.weight_scale'"));
}

// Pages of the file don't stay in memory once read.
TEST(CheckpointTest, ReleasedPagesAreReadAgain) {
  const TempDir directory;
  MambaSpec spec;
  spec.vocab_size = 20000;
  WriteMambaModel(spec, directory.path());
  const auto checkpoint = engine::Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok());
  const auto* view = (*checkpoint)->Find("backbone.embeddings.weight");
  ASSERT_NE(view, nullptr);
  const auto resident_file_kib = [] {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("RssFile:")) return std::stol(line.substr(8));
    }
    return 0L;
  };
  const auto sum = [&] {
    uint64_t total = 0;
    for (const std::byte byte : view->data) total += std::to_integer<uint64_t>(byte);
    return total;
  };
  const uint64_t first = sum();
  const long held = resident_file_kib();
  (*checkpoint)->Release(*view);
  const auto kib = static_cast<long>(view->data.size() / 1024);
  EXPECT_LT(resident_file_kib(), held - kib / 2);
  EXPECT_EQ(sum(), first);
}

}  // namespace
}  // namespace vivarium
