#include "engine/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/mamba_files.h"
#include "tests/support/temp_dir.h"

namespace vivarium::engine {
namespace {

using test::MambaSpec;
using test::Naming;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class ModelConfigTest : public testing::Test {
 protected:
  void Write(const MambaSpec& spec) {
    WriteMambaModel(spec, directory_.path());
    config_ = nlohmann::json::parse(MambaConfigJson(spec));
    auto checkpoint = Checkpoint::Open(directory_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }
  absl::StatusOr<ModelConfig> Load(const std::string& text) {
    test::WriteFile(directory_.File("config.json"), text);
    return LoadModelConfig(directory_.path(), *checkpoint_);
  }
  absl::StatusOr<ModelConfig> Load(const nlohmann::json& config) { return Load(config.dump()); }
  // The error after setting `field`.
  std::string ErrorWith(const std::string& field, const nlohmann::json& value) {
    nlohmann::json changed = config_;
    changed[field] = value;
    const auto config = Load(changed);
    return config.ok() ? "OK" : config.status().ToString();
  }

  test::TempDir directory_;
  nlohmann::json config_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(ModelConfigTest, ReadsHuggingFace) {
  MambaSpec spec;
  spec.stated_vocab_size = 35;
  Write(spec);
  config_["time_step_limit"] = {0.0, 1.0};
  std::string text = config_.dump();
  text.replace(text.find("[0.0,1.0]"), 9, "[0.0, Infinity]");  // as Python writes it
  const auto config = Load(text);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "MambaForCausalLM");
  EXPECT_EQ(config->vocab_size, 35);
  EXPECT_EQ(config->padded_vocab_size, 37);
  EXPECT_EQ(config->d_model, 20);
  EXPECT_EQ(config->d_inner, 24);  // although "expand" says 16 * d_model
  EXPECT_EQ(config->d_state, 5);
  EXPECT_EQ(config->d_conv, 4);
  EXPECT_EQ(config->dt_rank, 3);
  EXPECT_EQ(config->layers.size(), 2u);
  EXPECT_FLOAT_EQ(config->norm_eps, 1e-5f);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_FALSE(config->mixer_norms);
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(0));
}

TEST_F(ModelConfigTest, ShapesWinOverDerivedFields) {
  Write(MambaSpec());
  for (const char* field : {"hidden_size", "intermediate_size", "state_size", "conv_kernel",
                            "time_step_rank", "expand"}) {
    config_[field] = 4711;
  }
  const auto config = Load(config_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->d_inner, 24);
  EXPECT_EQ(config->dt_rank, 3);
}

TEST_F(ModelConfigTest, ReadsFalconAndStateSpaces) {
  MambaSpec spec;
  spec.is_falcon = true;
  spec.is_tied = false;
  Write(spec);
  config_["mixer_rms_eps"] = 1e-4;
  auto config = Load(config_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->mixer_norms);
  EXPECT_FLOAT_EQ(config->mixer_norm_eps, 1e-4f);
  EXPECT_FALSE(config->tie_embeddings);

  spec = MambaSpec();
  spec.naming = Naming::kStateSpaces;
  spec.stated_vocab_size = 33;
  Write(spec);
  config = Load(config_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "state-spaces");
  EXPECT_EQ(config->vocab_size, 33);
  EXPECT_EQ(config->padded_vocab_size, 37);
  EXPECT_FALSE(config->bos_token_id.has_value());
  EXPECT_THAT(config->eos_token_ids, IsEmpty());
}

TEST_F(ModelConfigTest, GenerationConfigOverridesTokenIds) {
  Write(MambaSpec());
  config_["eos_token_id"] = {1, 2};
  config_.erase("bos_token_id");
  auto config = Load(config_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1, 2));
  EXPECT_FALSE(config->bos_token_id.has_value());
  test::WriteFile(directory_.File("generation_config.json"),
                  R"({"eos_token_id": 3, "bos_token_id": 5, "temperature": 0.5, "top_k": 40,)"
                  R"( "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": true})");
  config = Load(config_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(3));
  EXPECT_EQ(config->bos_token_id, 5);
  const auto defaults = LoadGenerationDefaults(directory_.path());
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.5f);
  EXPECT_EQ(defaults->top_k, 40);
  EXPECT_EQ(defaults->top_p, 0.9f);
  EXPECT_EQ(defaults->repetition_penalty, 1.1f);
  EXPECT_EQ(defaults->do_sample, true);
  test::WriteFile(directory_.File("generation_config.json"), R"({"eos_token_id": 37})");
  EXPECT_THAT(Load(config_).status().ToString(),
              AllOf(HasSubstr("generation_config.json"), HasSubstr("from 0 to 36")));
}

TEST_F(ModelConfigTest, GenerationDefaultsAreCheckedAndOptional) {
  const auto none = LoadGenerationDefaults(directory_.path());
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->temperature || none->top_k || none->top_p || none->do_sample);
  for (const char* text :
       {R"({"temperature": -1})", R"({"temperature": "hot"})", R"({"top_p": 1.5})",
        R"({"top_k": -1})", R"({"top_k": 1.5})", R"({"repetition_penalty": 0})",
        R"({"temperature": Infinity})", R"({"do_sample": 1})", "[", "3"}) {
    test::WriteFile(directory_.File("generation_config.json"), text);
    EXPECT_EQ(LoadGenerationDefaults(directory_.path()).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST_F(ModelConfigTest, RefusesOtherArchitectures) {
  Write(MambaSpec());
  for (const char* name : {"Mamba2ForCausalLM", "LlamaForCausalLM", "mambaForCausalLM"}) {
    EXPECT_THAT(ErrorWith("architectures", {name}),
                AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr(name), HasSubstr("config.json")));
  }
  EXPECT_THAT(ErrorWith("architectures", 3), HasSubstr("INVALID_ARGUMENT"));
  EXPECT_THAT(ErrorWith("hidden_act", "relu"), HasSubstr("UNIMPLEMENTED"));
  EXPECT_THAT(Load(nlohmann::json::object()).status().ToString(), HasSubstr("architecture"));
  EXPECT_THAT(LoadModelConfig("/nonexistent", *checkpoint_).status().ToString(),
              HasSubstr("NOT_FOUND"));
}

TEST_F(ModelConfigTest, RefusesOtherStateSpacesModels) {
  MambaSpec spec;
  spec.naming = Naming::kStateSpaces;
  Write(spec);
  EXPECT_THAT(ErrorWith("ssm_cfg", {{"layer", "Mamba2"}}),
              AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("Mamba2")));
  EXPECT_THAT(ErrorWith("attn_layer_idx", {1}), HasSubstr("UNIMPLEMENTED"));
  EXPECT_EQ(ErrorWith("attn_layer_idx", nlohmann::json::array()), "OK");
  EXPECT_THAT(ErrorWith("d_intermediate", 64), HasSubstr("UNIMPLEMENTED"));
  EXPECT_THAT(ErrorWith("rms_norm", false), HasSubstr("UNIMPLEMENTED"));
  EXPECT_THAT(ErrorWith("ssm_cfg", 3), HasSubstr("an object"));
  EXPECT_EQ(ErrorWith("ssm_cfg", nullptr), "OK");
}

TEST_F(ModelConfigTest, RefusesWrongFieldsNamingThem) {
  Write(MambaSpec());
  EXPECT_THAT(ErrorWith("num_hidden_layers", 3),
              AllOf(HasSubstr("number of layers: expected 2"), HasSubstr("found 3")));
  EXPECT_THAT(ErrorWith("num_hidden_layers", 1), HasSubstr("found 1"));
  EXPECT_THAT(ErrorWith("num_hidden_layers", kMaxLayers), HasSubstr("number of layers"));
  EXPECT_THAT(ErrorWith("num_hidden_layers", kMaxLayers + 1), HasSubstr("from 1 to 1024"));
  EXPECT_THAT(ErrorWith("num_hidden_layers", "2"), HasSubstr("found \"2\""));
  EXPECT_THAT(ErrorWith("vocab_size", 38),
              AllOf(HasSubstr("at least 38 rows"), HasSubstr("[37, 20]")));
  for (const nlohmann::json& value :
       {nlohmann::json(0), nlohmann::json(-1), nlohmann::json(1.5), nlohmann::json(UINT64_MAX),
        nlohmann::json("x"), nlohmann::json(kMaxVocabSize + 1)}) {
    EXPECT_THAT(ErrorWith("vocab_size", value), HasSubstr("field vocab_size: expected a whole"));
  }
  for (const nlohmann::json& value :
       {nlohmann::json(0), nlohmann::json(-1e-5), nlohmann::json(2), nlohmann::json("1e-5")}) {
    EXPECT_THAT(ErrorWith("layer_norm_epsilon", value), HasSubstr("layer_norm_epsilon"));
  }
  EXPECT_THAT(ErrorWith("eos_token_id", 37), HasSubstr("from 0 to 36"));
  EXPECT_THAT(ErrorWith("eos_token_id", -1), HasSubstr("eos_token_id"));
  EXPECT_THAT(ErrorWith("eos_token_id", {1, "2"}), HasSubstr("eos_token_id"));
  EXPECT_EQ(ErrorWith("eos_token_id", std::vector<int>(64, 1)), "OK");
  EXPECT_THAT(ErrorWith("eos_token_id", std::vector<int>(65, 1)), HasSubstr("at most 64"));
  EXPECT_EQ(ErrorWith("eos_token_id", nullptr), "OK");
  EXPECT_THAT(ErrorWith("tie_word_embeddings", 1), HasSubstr("true or false"));
  EXPECT_THAT(ErrorWith("tie_word_embeddings", false), HasSubstr("no tensor 'lm_head.weight'"));
  EXPECT_THAT(ErrorWith("use_bias", true), HasSubstr("in_proj.bias"));
  EXPECT_THAT(ErrorWith("use_conv_bias", false), HasSubstr("conv1d.bias"));
}

// Dimensions at their bound and one past it.
TEST_F(ModelConfigTest, BoundsDimensions) {
  struct Bound {
    int64_t MambaSpec::*dimension;
    int64_t limit;
    const char* message;
  };
  for (const Bound& bound :
       {Bound{&MambaSpec::d_state, 256, "1 to 256"}, Bound{&MambaSpec::d_conv, 16, "1 to 16"},
        Bound{&MambaSpec::d_model, kMaxModelWidth, "1 to 131072"},
        Bound{&MambaSpec::vocab_size, kMaxVocabSize, "1 to 2097152"}}) {
    MambaSpec spec;
    spec.num_layers = 1;
    spec.d_inner = 2;
    spec.d_model = 1;
    spec.vocab_size = 3;
    spec.dt_rank = 1;
    spec.d_state = 1;
    spec.*bound.dimension = bound.limit;
    Write(spec);
    EXPECT_TRUE(Load(config_).ok()) << bound.message;
    spec.*bound.dimension = bound.limit + 1;
    spec.stated_vocab_size = 3;
    Write(spec);
    EXPECT_THAT(Load(config_).status().ToString(),
                AllOf(HasSubstr(bound.message), HasSubstr("tensor 'backbone.")));
  }
}

}  // namespace
}  // namespace vivarium::engine
