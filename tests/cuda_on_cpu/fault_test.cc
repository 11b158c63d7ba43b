// Every barrier, every wait and every block of the kernels matters: a launch without one gives
// other results, or is reported, so the op tests would notice.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/kernels/guarded_array.h"

namespace vivarium::kernels {
namespace {

using cuda_on_cpu::Fault;

std::unique_ptr<Backend> MakeBackend() {
  std::string error;
  auto backend = Backend::Create("cuda:0", {}, &error);
  EXPECT_NE(backend, nullptr) << error;
  return backend;
}

// Runs `launch`, which fills an array, with and without the fault; the order of threads is random,
// so a few times. True when a difference showed.
bool Shows(const Fault& fault, const std::function<std::vector<float>()>& launch) {
  cuda_on_cpu::InjectFault({});
  const std::vector<float> good = launch();
  EXPECT_EQ(cuda_on_cpu::LastError(), "");
  bool shows = false;
  for (int i = 0; i < 5 && !shows; ++i) {
    cuda_on_cpu::InjectFault(fault);
    const std::vector<float> bad = launch();
    cuda_on_cpu::InjectFault({});
    shows = !cuda_on_cpu::LastError().empty() ||
            std::memcmp(good.data(), bad.data(), good.size() * sizeof(float)) != 0;
  }
  return shows;
}

// `harmless`: barriers whose loss can't show because what they guard never happened before or after
// them in this launch.
void ExpectEveryFaultShows(const std::function<std::vector<float>()>& launch,
                           const std::vector<int>& harmless) {
  launch();
  const cuda_on_cpu::LaunchCounts counts = cuda_on_cpu::LastLaunchCounts();
  for (int i = 0; i < counts.barriers; ++i) {
    const bool expected = std::find(harmless.begin(), harmless.end(), i) == harmless.end();
    EXPECT_EQ(Shows({Fault::Kind::kSkipBarrier, i}, launch), expected)
        << "barrier " << i << " of " << counts.barriers;
  }
  for (int i = 0; i < counts.async_waits; ++i) {
    EXPECT_TRUE(Shows({Fault::Kind::kSkipAsyncWait, i}, launch))
        << "wait " << i << " of " << counts.async_waits;
  }
  EXPECT_TRUE(Shows({Fault::Kind::kDropLastBlock, 0}, launch));
}

std::vector<float> RandomVector(int64_t size, uint64_t seed) {
  std::vector<float> values(size);
  RandomValues(seed).Fill(values.data(), size);
  return values;
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
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < kRows; ++i) ids.push_back((i * 11 + 5) % kRows);
  ExpectEveryFaultShows(
      [&] {
        std::vector<float> out(table.size(), NAN);
        backend->EmbeddingGather(
            {table.data(), DType::kF32, kRows, ids.data(), out.data(), kRows, kChannels});
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

TEST(KernelFaults, SelectiveScan) {
  const auto backend = MakeBackend();
  constexpr int64_t kTokens = 80, kChannels = 48, kState = 16;
  const std::vector<float> x = RandomVector(kTokens * kChannels, 4);
  const std::vector<float> z = RandomVector(kTokens * kChannels, 5);
  const std::vector<float> dt = RandomVector(kTokens * kChannels, 6);
  const std::vector<float> bc = RandomVector(kTokens * 2 * kState, 7);
  std::vector<float> a = RandomVector(kChannels * kState, 8);
  for (float& value : a) value = -std::fabs(value);
  const std::vector<float> bias = RandomVector(kChannels, 9);
  const std::vector<Segment> segments = {{0, kTokens, kPadSlot, 0}};
  // Five tiles of 16 tokens: the last barrier of all guards nothing that follows, nor the one
  // before the last tile, whose neighbour buffer is not filled again.
  ExpectEveryFaultShows(
      [&] {
        std::vector<float> result(kTokens * kChannels + kChannels * kState, NAN);
        SelectiveScanParams params{};
        params.x = x.data();
        params.z = z.data();
        params.dt = dt.data();
        params.x_stride = params.z_stride = params.dt_stride = params.y_stride = kChannels;
        params.b = bc.data();
        params.c = bc.data() + kState;
        params.bc_stride = 2 * kState;
        params.a = a.data();
        params.dt_bias = bias.data();
        params.d_skip = bias.data();
        params.y = result.data();
        params.states = result.data() + kTokens * kChannels;
        params.segments = segments.data();
        params.num_segments = 1;
        params.channels = kChannels;
        params.d_state = kState;
        backend->SelectiveScan(params);
        return result;
      },
      {7, 9});
}

}  // namespace
}  // namespace vivarium::kernels
