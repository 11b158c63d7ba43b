// Every barrier, every wait and every block of the kernels matters: a launch without one gives
// other results, or is reported, so the op tests would notice.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/cuda_on_cpu/fault_checks.h"

namespace vivarium::kernels {
namespace {

std::unique_ptr<Backend> MakeBackend() {
  std::string error;
  auto backend = Backend::Create("cuda:0", {.deterministic = true}, &error);
  EXPECT_NE(backend, nullptr) << error;
  return backend;
}

TEST(KernelFaults, RmsNorm) {
  const auto backend = MakeBackend();
  const std::vector<float> x = RandomVector(3 * 700, 1);
  ExpectEveryFaultShows(
      [&] {
        std::vector<float> out(x.size(), NAN);
        RmsNormParams params{};
        params.x = x.data();
        params.x_stride = 700;
        params.out = out.data();
        params.out_stride = 700;
        params.eps = 1e-5f;
        params.num_tokens = 3;
        params.channels = 700;
        backend->RmsNorm(params);
        return out;
      },
      {});
}

std::vector<float> RunLinear(Backend* backend, int64_t num_tokens, DType weights) {
  constexpr int64_t kRows = 20, kCols = 330;
  const std::vector<float> w = RandomVector(kRows * kCols, 2);
  const std::vector<float> x = RandomVector(num_tokens * kCols, 3);
  const auto packed = backend->Pack(w.data(), DType::kF32, kRows, kCols, weights);
  std::vector<float> out(num_tokens * kRows, NAN);
  LinearParams params{};
  params.x = x.data();
  params.x_stride = kCols;
  params.weight = packed.get();
  params.out = out.data();
  params.out_stride = kRows;
  params.num_tokens = num_tokens;
  backend->Linear(params);
  return out;
}

TEST(KernelFaults, LinearForFewTokens) {
  const auto backend = MakeBackend();
  ExpectEveryFaultShows([&] { return RunLinear(backend.get(), 5, DType::kBF16); }, {});
}

TEST(KernelFaults, LinearForManyTokens) {
  const auto backend = MakeBackend();
  // Before the first stage, nobody has read anything yet.
  ExpectEveryFaultShows([&] { return RunLinear(backend.get(), 70, DType::kBF16); }, {0});
}

TEST(KernelFaults, LinearWithF32Weights) {
  const auto backend = MakeBackend();
  ExpectEveryFaultShows([&] { return RunLinear(backend.get(), 5, DType::kF32); }, {});
}

// Copies have no barriers, but a block that must run.
TEST(KernelFaults, EmbeddingGatherAndGatherRows) {
  const auto backend = MakeBackend();
  constexpr int64_t kRows = 37, kChannels = 130;
  const std::vector<float> table = RandomVector(kRows * kChannels, 21);
  const auto packed = backend->Pack(table.data(), DType::kF32, kRows, kChannels, DType::kF32);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < kRows; ++i) ids.push_back((i * 11 + 5) % kRows);
  ExpectEveryFaultShows(
      [&] {
        std::vector<float> out(table.size(), NAN);
        backend->EmbeddingGather({packed.get(), ids.data(), out.data(), kRows});
        return out;
      },
      {});
  ExpectEveryFaultShows(
      [&] {
        std::vector<float> out(table.size(), NAN);
        backend->GatherRows({table.data(), ids.data(), out.data(), kRows, kChannels});
        return out;
      },
      {});
}

TEST(KernelFaults, CausalConv1d) {
  const auto backend = MakeBackend();
  constexpr int64_t kTokens = 30, kChannels = 300, kWidth = 4;
  const std::vector<float> x = RandomVector(kTokens * kChannels, 22);
  const std::vector<float> weight = RandomVector(kWidth * kChannels, 23);
  const std::vector<float> states = RandomVector(2 * (kWidth - 1) * kChannels, 24);
  const std::vector<Segment> segments = {{0, 17, 0, 0}, {17, 13, kPadSlot, 1}};
  ExpectEveryFaultShows(
      [&] {
        std::vector<float> result(x.size(), NAN);
        result.insert(result.end(), states.begin(), states.end());
        CausalConv1dParams params{};
        params.x = x.data();
        params.weight = weight.data();
        params.states = result.data() + x.size();
        params.slot_stride = (kWidth - 1) * kChannels;
        params.out = result.data();
        params.x_stride = params.out_stride = params.channels = kChannels;
        params.segments = segments.data();
        params.num_segments = 2;
        params.width = kWidth;
        backend->CausalConv1d(params);
        return result;
      },
      {});
}

}  // namespace
}  // namespace vivarium::kernels
