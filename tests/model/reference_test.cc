// The model against a naive double-precision one, over shapes chosen to break.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/support/mamba_files.h"
#include "tests/support/model_harness.h"
#include "tests/support/reference_mamba.h"
#include "tests/support/temp_dir.h"

namespace vivarium {
namespace {

using kernels::DType;
using test::MambaSpec;
using test::ModelHarness;
using test::Naming;

struct Case {
  const char* name;
  MambaSpec spec;
};

MambaSpec Spec(int64_t d_model, int64_t d_inner, int64_t d_state, int64_t d_conv, int64_t dt_rank,
               bool is_falcon) {
  MambaSpec spec;
  spec.d_model = d_model;
  spec.d_inner = d_inner;
  spec.d_state = d_state;
  spec.d_conv = d_conv;
  spec.dt_rank = dt_rank;
  spec.is_falcon = is_falcon;
  return spec;
}

std::vector<Case> Cases() {
  std::vector<Case> cases = {
      {"Odd", Spec(20, 24, 5, 2, 3, false)},
      {"FalconOdd", Spec(20, 24, 5, 2, 3, true)},
      {"FalconUsual", Spec(32, 64, 16, 4, 2, true)},
      {"AllOnes", Spec(1, 1, 1, 1, 1, false)},
      {"FalconAllOnes", Spec(1, 1, 1, 1, 1, true)},
      {"OneOverATile", Spec(17, 33, 17, 4, 7, false)},
      {"WideConvolution", Spec(8, 16, 16, 16, 1, false)},
      {"LargestState", Spec(8, 15, 256, 3, 5, true)},
      {"RankAboveWidth", Spec(5, 7, 3, 4, 31, true)},
  };
  MambaSpec biases = Spec(20, 40, 8, 4, 3, false);
  biases.has_proj_bias = true;
  biases.has_conv_bias = false;
  biases.is_tied = false;
  cases.push_back({"ProjectionBiasesNoConvolutionBiasUntied", biases});
  MambaSpec half = Spec(24, 48, 16, 4, 3, true);
  half.dtype = DType::kF16;
  half.is_tied = false;
  cases.push_back({"FalconF16", half});
  MambaSpec brain = Spec(24, 48, 16, 4, 3, false);
  brain.dtype = DType::kBF16;
  brain.naming = Naming::kStateSpaces;
  brain.stated_vocab_size = 33;
  cases.push_back({"StateSpacesBf16Padded", brain});
  MambaSpec deep = Spec(16, 32, 4, 4, 1, false);
  deep.num_layers = 9;
  deep.num_shards = 3;
  cases.push_back({"NineLayersInThreeShards", deep});
  return cases;
}

class ReferenceTest : public testing::TestWithParam<Case> {};

TEST_P(ReferenceTest, LogitsAndStatesOnEveryPath) {
  const MambaSpec& spec = GetParam().spec;
  const test::TempDir directory;
  WriteMambaModel(spec, directory.path());
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 40; ++i) tokens.push_back((i * i * 7 + i * 3 + 1) % 33);

  test::ReferenceMamba reference(spec);
  std::vector<double> expected;
  double scale = 1.0;  // the largest logit: the tolerance is relative to it
  for (const int32_t token : tokens) {
    for (const double logit : reference.Step(token)) {
      expected.push_back(logit);
      scale = std::max(scale, std::fabs(logit));
    }
  }
  for (const std::string& isa : test::TestIsas()) {
    SCOPED_TRACE(isa);
    test::HarnessOptions options;
    options.isa = isa;
    auto harness = ModelHarness::Load(directory.path(), options);
    if (!harness.ok() && harness.status().ToString().find(isa) != std::string::npos) continue;
    ASSERT_TRUE(harness.ok()) << harness.status();
    EXPECT_EQ((*harness)->model().config().mixer_norms, spec.is_falcon);
    EXPECT_EQ((*harness)->vocab(), spec.vocab_size);
    const std::vector<float> logits = (*harness)->Feed(tokens, 0, 13);
    ASSERT_EQ(logits.size(), expected.size());
    double worst = 0.0;
    for (size_t i = 0; i < logits.size(); ++i) {
      worst =
          std::max(worst, std::isnan(logits[i]) ? INFINITY : std::fabs(logits[i] - expected[i]));
    }
    EXPECT_LE(worst, 1e-4 * scale);
    for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
      const engine::MambaLayerState state = (*harness)->LayerState(0, layer);
      ASSERT_EQ(state.conv_state.size(), reference.conv_state(layer).size());
      ASSERT_EQ(state.ssm_state.size(), reference.ssm_state(layer).size());
      for (size_t i = 0; i < state.conv_state.size(); ++i) {
        ASSERT_NEAR(state.conv_state[i], reference.conv_state(layer)[i], 1e-4) << layer;
      }
      for (size_t i = 0; i < state.ssm_state.size(); ++i) {
        ASSERT_NEAR(state.ssm_state[i], reference.ssm_state(layer)[i], 1e-4) << layer;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

// The norms of Falcon-Mamba matter: without them the same weights give other logits.
TEST(ReferenceMambaTest, FalconNormsMatter) {
  MambaSpec spec = Spec(20, 24, 5, 2, 3, true);
  test::ReferenceMamba falcon(spec);
  spec.is_falcon = false;
  test::ReferenceMamba plain(spec);
  const std::vector<double> a = falcon.Step(3);
  const std::vector<double> b = plain.Step(3);
  double worst = 0.0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(a[i] - b[i]));
  EXPECT_GT(worst, 0.01);
}

}  // namespace
}  // namespace vivarium
