// The device under test (VIVARIUM_TEST_DEVICE) against the CPU's portable path: the whole model's
// logits, and states that move between the two in both directions.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "tests/support/mamba_files.h"
#include "tests/support/model_harness.h"
#include "tests/support/temp_dir.h"

namespace vivarium {
namespace {

using engine::WeightFormat;
using test::HarnessOptions;
using test::ModelHarness;

constexpr float kF32Tolerance = 2e-4f;   // as for the goldens
constexpr float kBF16Tolerance = 8e-1f;  // activations are rounded to bf16 on some paths
constexpr int kNumTokens = 200;
constexpr int kSplit = 131;

std::string Golden(const std::string& name) {
  return test::RootDir() + "/tests/data/goldens/" + name;
}

std::unique_ptr<ModelHarness> Load(const std::string& directory, const HarnessOptions& options) {
  auto harness = ModelHarness::Load(directory, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? std::move(*harness) : nullptr;
}

std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens;
  for (int i = 0; i < kNumTokens; ++i) tokens.push_back(1 + i * 37 % 300);
  return tokens;
}

void ExpectNear(std::span<const float> found, std::span<const float> expected, float tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_LE(std::fabs(found[i] - expected[i]), tolerance) << i;
  }
}

// The first part of the tokens on `from`, the rest on `to`: near `expected`, all of it on one.
void ExpectMoves(ModelHarness* from, ModelHarness* to, const std::vector<float>& expected,
                 float tolerance) {
  const std::vector<int32_t> tokens = Tokens();
  from->ZeroSlot(0);
  from->Feed(std::span(tokens).first(kSplit), 0, 64);
  const std::vector<std::byte> state = from->ReadSlot(0);
  to->WriteSlot(1, state);
  EXPECT_EQ(to->ReadSlot(1), state) << "moving changes no bit";
  const std::vector<float> rest = to->Feed(std::span(tokens).subspan(kSplit), 1, 1);
  ExpectNear(rest, std::span(expected).last(rest.size()), tolerance);
}

TEST(DeviceTest, LogitsAndMovedStatesAreNearTheCpus) {
  for (const auto& [name, weights, tolerance] :
       {std::tuple{"tiny-mamba", WeightFormat::kF32, kF32Tolerance},
        std::tuple{"tiny-mamba-bf16", WeightFormat::kBF16, kBF16Tolerance}}) {
    SCOPED_TRACE(name);
    const auto cpu = Load(Golden(name), {.weights = weights, .device = "cpu", .isa = "portable"});
    const auto device = Load(Golden(name), {.weights = weights});
    ASSERT_TRUE(cpu && device);
    const std::vector<float> expected = cpu->Feed(Tokens(), 0, kNumTokens);
    ExpectNear(device->Feed(Tokens(), 0, kNumTokens), expected, tolerance);
    ExpectMoves(device.get(), cpu.get(), expected, tolerance);
    ExpectMoves(cpu.get(), device.get(), expected, tolerance);
  }
}

// mamba-130m's widths: real sizes reach kernels and tiles that small ones don't.
TEST(DeviceTest, RealWidthsAreNearTheCpus) {
  test::MambaSpec spec;
  spec.num_layers = 2;
  spec.d_model = 768;
  spec.d_inner = 1536;
  spec.d_state = 16;
  spec.dt_rank = 48;
  spec.vocab_size = 1000;
  const test::TempDir directory;
  WriteMambaModel(spec, directory.path());
  const auto cpu = Load(directory.path(), {.device = "cpu", .isa = "portable"});
  const auto device = Load(directory.path(), {});
  ASSERT_TRUE(cpu && device);
  const std::vector<float> expected = cpu->Feed(Tokens(), 0, kNumTokens);
  ExpectNear(device->Feed(Tokens(), 0, kNumTokens), expected, kF32Tolerance);
  ExpectMoves(device.get(), cpu.get(), expected, kF32Tolerance);
  ExpectMoves(cpu.get(), device.get(), expected, kF32Tolerance);
}

}  // namespace
}  // namespace vivarium
