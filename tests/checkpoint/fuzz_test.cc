// Mutated model files, with a fixed seed: an error or a sane model, never a crash, never a read
// outside a file. Half of the mutations keep the outer form, so that the parsers behind are
// reached. VIVARIUM_FUZZ_ROUNDS multiplies the number of mutations.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/checkpoint/model_config.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/checkpoint/tensor_table.h"
#include "engine/checkpoint/torch_file.h"
#include "engine/model/model.h"
#include "tests/checkpoint/mutation.h"
#include "tests/support/mamba_files.h"
#include "tests/support/temp_dir.h"
#include "tests/support/torch_files.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;
using test::Mutator;

int NumMutations() {
  const char* rounds = std::getenv("VIVARIUM_FUZZ_ROUNDS");
  return 10'000 * (rounds == nullptr ? 1 : std::max(1, std::atoi(rounds)));
}

test::MambaSpec TinySpec() {
  test::MambaSpec spec;
  spec.num_layers = 1;
  spec.d_model = 4;
  spec.d_inner = 6;
  spec.d_state = 2;
  spec.d_conv = 2;
  spec.dt_rank = 1;
  spec.vocab_size = 7;
  return spec;
}

class FuzzTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = kernels::Backend::Create("cpu", {1, "portable"}, &error);
    ASSERT_NE(backend_, nullptr) << error;
    WriteMambaModel(TinySpec(), directory_.path());
  }

  // A parser on a copy of exactly its size, where a sanitizer sees a read outside. All bytes of all
  // tensors are read.
  template <typename Parse>
  void ParseInMemory(const std::string& file, Parse parse) {
    const std::vector<char> exact(file.begin(), file.end());
    const absl::StatusOr<TensorTable> table = parse(std::as_bytes(std::span(exact)), "fuzzed");
    if (!table.ok()) {
      EXPECT_FALSE(table.status().message().empty());
      return;
    }
    ++num_parsed_;
    for (const auto& [name, view] : table->tensors) {
      const char* data = reinterpret_cast<const char*>(view.data.data());
      ASSERT_TRUE(view.data.empty() ||
                  (data >= exact.data() && data + view.data.size() <= exact.data() + exact.size()));
      ASSERT_EQ(CheckedTensorBytes(view.shape, kernels::DTypeBytes(view.dtype)), view.data.size());
      for (const std::byte byte : view.data) sum_ += std::to_integer<uint64_t>(byte);
    }
  }

  // The directory as a whole: what opens must have a sane config, and what loads must run.
  void LoadDirectory() {
    const auto checkpoint = Checkpoint::Open(directory_.path());
    if (!checkpoint.ok()) return;
    const auto config = LoadModelConfig(directory_.path(), **checkpoint);
    LoadGenerationDefaults(directory_.path()).IgnoreError();
    if (!config.ok()) return;
    ++num_configs_;
    ExpectSane(*config);
    ModelOptions options;
    options.max_batch_tokens = 2;
    options.max_logit_rows = 1;
    const auto model = Model::Load(**checkpoint, *config, backend_.get(), options);
    if (!model.ok()) {
      EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << model.status();
      return;
    }
    ++num_models_;
    void* slots = backend_->Allocate((*model)->state_layout().slot_bytes);
    const int32_t ids[] = {0, static_cast<int32_t>(config->vocab_size - 1)};
    const kernels::Segment segment{0, 2, 0, 0};
    const int32_t rows[] = {1};
    (*model)->Forward({ids, {&segment, 1}, rows}, static_cast<std::byte*>(slots));
    backend_->Free(slots);
  }

  static void ExpectSane(const ModelConfig& config) {
    EXPECT_TRUE(config.vocab_size >= 1 && config.vocab_size <= config.padded_vocab_size);
    EXPECT_LE(config.padded_vocab_size, kMaxVocabSize);
    for (const int64_t width : {config.d_model, config.d_inner, config.dt_rank}) {
      EXPECT_TRUE(width >= 1 && width <= kMaxModelWidth) << width;
    }
    EXPECT_TRUE(config.d_state >= 1 && config.d_state <= kernels::kMaxStateSize);
    EXPECT_TRUE(config.d_conv >= 1 && config.d_conv <= kernels::kMaxConvWidth);
    EXPECT_TRUE(!config.layers.empty() && config.layers.size() <= size_t{kMaxLayers});
    EXPECT_TRUE(config.norm_eps > 0 && config.norm_eps <= 1);
    EXPECT_TRUE(config.mixer_norm_eps > 0 && config.mixer_norm_eps <= 1);
    for (const int32_t id : config.eos_token_ids) {
      EXPECT_TRUE(id >= 0 && id < config.padded_vocab_size) << id;
    }
    EXPECT_TRUE(config.bos_token_id.value_or(0) >= 0 &&
                config.bos_token_id.value_or(0) < config.padded_vocab_size);
  }

  const test::TempDir directory_ = test::TempDir::InMemory();
  std::unique_ptr<kernels::Backend> backend_;
  uint64_t sum_ = 0;
  int num_parsed_ = 0;   // files that were accepted
  int num_configs_ = 0;  // directories with a config
  int num_models_ = 0;   // and with a model
};

TEST_F(FuzzTest, Safetensors) {
  const std::string good = test::ReadFile(directory_.File("model.safetensors"));
  size_t header_bytes = 0;
  for (int i = 0; i < 8; ++i) {
    header_bytes |= static_cast<size_t>(static_cast<unsigned char>(good[i])) << (8 * i);
  }
  const json header = json::parse(good.substr(8, header_bytes));
  const std::string data = good.substr(8 + header_bytes);
  Mutator mutator(1);
  for (int i = 0; i < NumMutations(); ++i) {
    std::string file;
    if (i % 2 == 0) {
      file = mutator.Chance(2) ? mutator.Bytes(good) : mutator.Bytes(good, 0, 8 + header_bytes);
    } else {
      const std::string text =
          mutator.Json(header).dump(-1, ' ', true, json::error_handler_t::replace);
      for (int j = 0; j < 8; ++j) file += static_cast<char>(text.size() >> (8 * j));
      file += text + data;
    }
    ParseInMemory(file, ParseSafetensors);
    test::WriteFile(directory_.File("model.safetensors"), file);
    LoadDirectory();
  }
  EXPECT_GT(num_parsed_, 0);
  EXPECT_GT(num_configs_, 0);
  EXPECT_GT(num_models_, 0);
  RecordProperty("accepted", num_parsed_);
}

TEST_F(FuzzTest, TorchFile) {
  std::filesystem::remove(directory_.File("model.safetensors"));
  const std::vector<test::RandomTensor> tensors = MambaTensors(TinySpec());
  const std::vector<test::PickleEntry> entries = TorchEntries(tensors);
  const std::string pickle = test::MakePickle(entries);
  const std::string good = test::MakeZip(TorchMembers(tensors, pickle), false);
  const std::string good64 = test::MakeZip(TorchMembers(tensors, pickle), true);
  Mutator mutator(2);
  const auto change_entry = [&](std::vector<test::PickleEntry> changed) {
    test::PickleEntry& entry = changed[mutator.Below(changed.size())];
    std::vector<int64_t>& extents = mutator.Chance(2) ? entry.shape : entry.strides;
    switch (mutator.Below(5)) {
      case 0:
        entry.offset = mutator.Number(entry.offset);
        break;
      case 1:
        entry.storage_count = mutator.Number(entry.storage_count);
        break;
      case 2:
        entry.storage_key = std::to_string(mutator.Below(changed.size() + 2));
        break;
      case 3:
        entry.storage_type = mutator.Chance(2) ? "torch HalfStorage" : "torch LongStorage";
        break;
      default:
        if (!extents.empty()) {
          int64_t& extent = extents[mutator.Below(extents.size())];
          extent = mutator.Number(extent);
        }
    }
    return test::MakePickle(changed);
  };
  for (int i = 0; i < NumMutations(); ++i) {
    std::string file;
    switch (mutator.Below(4)) {
      case 0: {  // the bytes, mostly those of the directory
        const std::string& base = mutator.Chance(2) ? good : good64;
        const size_t directory = base.find("PK\x01\x02");
        file = mutator.Bytes(base, mutator.Chance(4) ? 0 : directory, base.size());
        break;
      }
      case 1:  // the bytes of the pickle, in a good archive
        file = test::MakeZip(TorchMembers(tensors, mutator.Bytes(pickle)), false);
        break;
      default:  // a good pickle that says something else
        file = test::MakeZip(TorchMembers(tensors, change_entry(entries)), mutator.Chance(2));
    }
    ParseInMemory(file, ParseTorchFile);
    test::WriteFile(directory_.File("pytorch_model.bin"), file);
    LoadDirectory();
  }
  EXPECT_GT(num_parsed_, 0);
  EXPECT_GT(num_models_, 0);
}

TEST_F(FuzzTest, ConfigAndGenerationConfig) {
  test::MambaSpec other = TinySpec();
  other.naming = test::Naming::kStateSpaces;
  const json configs[] = {json::parse(MambaConfigJson(TinySpec())),
                          json::parse(MambaConfigJson(other))};
  const json generation = {{"bos_token_id", 1}, {"eos_token_id", {1, 2}}, {"temperature", 0.5},
                           {"top_k", 40},       {"top_p", 0.9},           {"do_sample", true}};
  Mutator mutator(3);
  const auto mutate = [&](const json& document, int i) {
    return i % 2 == 0 ? mutator.Bytes(document.dump())
                      : mutator.Json(document).dump(-1, ' ', true, json::error_handler_t::replace);
  };
  for (int i = 0; i < NumMutations(); ++i) {
    const json& config = configs[mutator.Below(2)];
    const bool is_generation = mutator.Chance(4);
    test::WriteFile(directory_.File("config.json"),
                    is_generation ? config.dump() : mutate(config, i));
    test::WriteFile(directory_.File("generation_config.json"),
                    is_generation ? mutate(generation, i) : generation.dump());
    LoadDirectory();
  }
  EXPECT_GT(num_models_, 0);
  EXPECT_LT(num_models_, NumMutations());
}

TEST_F(FuzzTest, Index) {
  std::filesystem::remove(directory_.File("model.safetensors"));
  test::MambaSpec spec = TinySpec();
  spec.num_shards = 3;
  WriteMambaModel(spec, directory_.path());
  const std::string path = directory_.File("model.safetensors.index.json");
  const json index = json::parse(test::ReadFile(path));
  Mutator mutator(4);
  for (int i = 0; i < NumMutations(); ++i) {
    test::WriteFile(
        path, i % 2 == 0 ? mutator.Bytes(index.dump())
                         : mutator.Json(index).dump(-1, ' ', true, json::error_handler_t::replace));
    LoadDirectory();
  }
  EXPECT_LT(num_models_, NumMutations());
}

}  // namespace
}  // namespace vivarium::engine
