// The whole model on the CUDA kernels, as host C++: near the CPU backend, and, within the backend,
// the same bits however the tokens are cut.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/support/model_harness.h"
#include "tests/support/test_environment.h"

namespace vivarium {
namespace {

using engine::WeightFormat;
using test::HarnessOptions;
using test::ModelHarness;

constexpr float kF32Tolerance = 2e-4f;   // as for the goldens
constexpr float kBF16Tolerance = 8e-1f;  // activations are rounded to bf16, as on avx512
constexpr int kNumTokens = 19;

std::unique_ptr<ModelHarness> Load(const std::string& name, const HarnessOptions& options) {
  auto harness = ModelHarness::Load(test::RootDir() + "/tests/data/goldens/" + name, options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? std::move(*harness) : nullptr;
}

std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens;
  for (int i = 0; i < kNumTokens; ++i) tokens.push_back(1 + i * 37 % 300);
  return tokens;
}

void CheckModel(const std::string& name, WeightFormat weights, float tolerance) {
  const std::vector<int32_t> tokens = Tokens();
  const auto cpu = Load(name, {.weights = weights, .isa = "portable"});
  const auto cuda = Load(name, {.weights = weights, .device = "cuda:0"});
  ASSERT_TRUE(cpu && cuda);
  const std::vector<float> expected = cpu->Feed(tokens, 0, kNumTokens);
  const std::vector<float> whole = cuda->Feed(tokens, 0, kNumTokens);
  ASSERT_EQ(whole.size(), expected.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    ASSERT_LE(std::fabs(whole[i] - expected[i]), tolerance) << i;
  }
  const std::vector<std::byte> state = cuda->ReadSlot(0);
  for (const int chunk : {1, 7}) {
    EXPECT_EQ(cuda->Feed(tokens, 1, chunk), whole) << "chunks of " << chunk;
    EXPECT_EQ(cuda->ReadSlot(1), state) << "chunks of " << chunk;
    cuda->ZeroSlot(1);
  }
}

TEST(CudaModel, F32WeightsAgreeWithTheCpu) {
  CheckModel("tiny-mamba", WeightFormat::kF32, kF32Tolerance);
}

TEST(CudaModel, BF16WeightsAgreeWithTheCpu) {
  CheckModel("tiny-mamba-bf16", WeightFormat::kBF16, kBF16Tolerance);
}

// A decode step is four kernels a layer, and the gather, the last norm and the head; f32 weights
// take the ops one by one.
TEST(CudaModel, DecodeIsFused) {
  for (const auto& [name, weights, per_layer, others] :
       {std::tuple{"tiny-mamba-bf16", WeightFormat::kBF16, 4, 2},
        std::tuple{"tiny-mamba", WeightFormat::kF32, 7, 3}}) {
    const auto cuda = Load(name, {.weights = weights, .device = "cuda:0"});
    ASSERT_TRUE(cuda);
    const auto num_layers = static_cast<int>(cuda->model().config().layers.size());
    const std::vector<int32_t> tokens = Tokens();
    for (int i = 0; i < 2; ++i) {  // recorded, then replayed
      cuda_on_cpu::TakeLaunchCounts();
      cuda->Feed(std::span(tokens).first(1), 0, 1);
      EXPECT_EQ(cuda_on_cpu::TakeLaunchCounts().size(),
                static_cast<size_t>(per_layer * num_layers + others));
    }
  }
}

// States in bf16: prefill, chunks, chains and the fused decode step agree bit for bit.
TEST(CudaModel, BF16States) {
  const std::vector<int32_t> tokens = Tokens();
  const auto cuda = Load(
      "tiny-mamba-bf16",
      {.weights = WeightFormat::kBF16, .state_dtype = kernels::DType::kBF16, .device = "cuda:0"});
  ASSERT_TRUE(cuda);
  EXPECT_TRUE(cuda->model().numerics_id().ends_with("-wbf16-sbf16"));
  const std::vector<float> whole = cuda->Feed(tokens, 0, kNumTokens);
  const std::vector<std::byte> state = cuda->ReadSlot(0);
  for (const int chunk : {1, 7}) {
    EXPECT_EQ(cuda->Feed(tokens, 1, chunk), whole) << "chunks of " << chunk;
    EXPECT_EQ(cuda->ReadSlot(1), state) << "chunks of " << chunk;
    cuda->ZeroSlot(1);
  }
  // A chain of segments of one token each, with all logits, is no decode step.
  std::vector<kernels::Segment> chain;
  std::vector<int32_t> rows;
  for (int32_t t = 0; t < kNumTokens; ++t) {
    rows.push_back(t);
    const bool is_last = t + 1 == kNumTokens;
    chain.push_back(
        {t, 1, t == 0 ? 1 : kernels::kPreviousSegment, is_last ? 2 : kernels::kPadSlot});
  }
  EXPECT_EQ(cuda->Run({tokens, chain, rows}), whole);
  EXPECT_EQ(cuda->ReadSlot(2), state);
}

// Three streams of one step, in a recording for four rows, then two in one for two: each has the
// bits that it has alone; the pad row touches no slot.
TEST(CudaModel, StreamsOfARecordedStepAreIndependent) {
  const auto cuda = Load("tiny-mamba-bf16", {.weights = WeightFormat::kBF16, .device = "cuda:0"});
  ASSERT_TRUE(cuda);
  const std::vector<int32_t> tokens = Tokens();
  const int64_t vocab = cuda->vocab();
  constexpr int kSteps = 3;
  std::vector<std::vector<float>> alone;
  for (int i = 0; i < 3; ++i) {
    alone.push_back(cuda->Feed(std::span(tokens).subspan(i, kSteps), 3, kSteps));
    cuda->ZeroSlot(3);
  }
  const std::vector<std::byte> untouched = cuda->ReadSlot(3);
  for (int step = 0; step < kSteps; ++step) {
    const int32_t num_rows = step == 1 ? 2 : 3;  // stream 2 misses a step
    std::vector<int32_t> ids, rows;
    std::vector<kernels::Segment> segments;
    for (int32_t row = 0; row < num_rows; ++row) {
      const int32_t consumed = row == 2 && step == 2 ? 1 : step;
      ids.push_back(tokens[row + consumed]);
      segments.push_back({row, 1, row, row});
      rows.push_back(row);
    }
    const std::vector<float> logits = cuda->Run({ids, segments, rows});
    for (int32_t row = 0; row < num_rows; ++row) {
      const int32_t consumed = row == 2 && step == 2 ? 1 : step;
      EXPECT_TRUE(std::equal(logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab,
                             alone[row].begin() + consumed * vocab))
          << "step " << step << " row " << row;
    }
  }
  EXPECT_EQ(cuda->ReadSlot(3), untouched);
}

// Decode on the CPU from a state that the CUDA kernels made.
TEST(CudaModel, AStateMovesToTheCpu) {
  const std::vector<int32_t> tokens = Tokens();
  const auto cpu = Load("tiny-mamba", {});
  const auto cuda = Load("tiny-mamba", {.device = "cuda:0"});
  ASSERT_TRUE(cpu && cuda);
  const std::vector<float> expected = cpu->Feed(tokens, 0, kNumTokens);
  cuda->Feed(std::span(tokens).first(kNumTokens - 1), 0, 16);
  cpu->WriteSlot(1, cuda->ReadSlot(0));
  const std::vector<float> last = cpu->Feed(std::span(tokens).last(1), 1, 1);
  for (size_t i = 0; i < last.size(); ++i) {
    ASSERT_LE(std::fabs(last[i] - expected[expected.size() - last.size() + i]), kF32Tolerance);
  }
}

}  // namespace
}  // namespace vivarium
