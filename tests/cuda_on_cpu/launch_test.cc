// cuda_on_cpu itself: dependent launches and recorded ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/device.h"

namespace vivarium::kernels::cuda {
namespace {

using cuda_on_cpu::Fault;
constexpr int kBlocks = 4;
constexpr int kThreads = 32;
constexpr int kSize = kBlocks * kThreads;

// out = 2 x, of another block's part of x. `early`: reads before the wait.
void DoubleKernel(const float* x, float* out, bool early) {
  LetDependentsStart();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  float value = early ? x[kSize - 1 - i] : 0.0f;
  GridDependencyWait();
  if (!early) value = x[kSize - 1 - i];
  out[i] = 2.0f * value;
}

// The same with no wait at all, as for a launch that is not dependent.
void SerialDoubleKernel(const float* x, float* out) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  out[i] = 2.0f * x[kSize - 1 - i];
}

// x -> a -> b -> out, each a dependent launch; `early` for the last one.
std::vector<float> Chain(bool early) {
  const std::vector<float> x(kSize, 1.0f);
  std::vector<float> a(kSize, NAN), b(kSize, NAN), out(kSize, NAN);
  const auto launch = [](const std::vector<float>& from, std::vector<float>& to, bool read_early) {
    LaunchDependent(true, DoubleKernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, from.data(),
                    to.data(), read_early);
  };
  launch(x, a, false);
  launch(a, b, false);
  launch(b, out, early);
  cuda_on_cpu::Flush();
  return out;
}

bool HasNan(const std::vector<float>& values) {
  return std::any_of(values.begin(), values.end(), [](float v) { return std::isnan(v); });
}

TEST(DependentLaunch, SeesWhatCameBeforeAfterItsWait) {
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Chain(false), std::vector<float>(kSize, 8.0f));
  EXPECT_EQ(cuda_on_cpu::LastError(), "");
}

TEST(DependentLaunch, SeesNothingBeforeIt) { EXPECT_TRUE(HasNan(Chain(true))); }

TEST(DependentLaunch, ADroppedWaitShows) {
  for (const int launch : {1, 2}) {
    cuda_on_cpu::InjectFault({Fault::Kind::kSkipGridWait, 0, launch});
    EXPECT_TRUE(HasNan(Chain(false))) << "launch " << launch;
  }
  cuda_on_cpu::InjectFault({Fault::Kind::kSkipGridWait, 0, 0});
  EXPECT_FALSE(HasNan(Chain(false))) << "nothing comes before the first";
  cuda_on_cpu::InjectFault({});
}

TEST(DependentLaunch, WaitsForAKernelThatDoesNotLetItGo) {
  const std::vector<float> x(kSize, 1.0f);
  std::vector<float> a(kSize, NAN), out(kSize, NAN);
  const float* x_data = x.data();
  float* a_data = a.data();
  LAUNCH(SerialDoubleKernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, x_data, a_data);
  LaunchDependent(true, DoubleKernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, a.data(),
                  out.data(), true);
  cuda_on_cpu::Flush();
  EXPECT_EQ(out, std::vector<float>(kSize, 4.0f));
}

TEST(DependentLaunch, IsSerialWhereThereIsNoOverlap) {
  const std::vector<float> x(kSize, 1.0f);
  std::vector<float> a(kSize, NAN), out(kSize, NAN);
  for (const auto& [from, to] : {std::pair{&x, &a}, std::pair{&std::as_const(a), &out}}) {
    LaunchDependent(false, DoubleKernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, from->data(),
                    to->data(), true);
  }
  EXPECT_EQ(out, std::vector<float>(kSize, 4.0f));
}

TEST(Graph, RunsWhatWasCapturedWithTheValuesOfThen) {
  std::vector<float> x(kSize, 1.0f), a(kSize, NAN), out(kSize, NAN), copy(kSize, NAN);
  cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal);
  LaunchDependent(true, DoubleKernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, x.data(), a.data(),
                  false);
  LaunchDependent(true, DoubleKernel, dim3(kBlocks), dim3(kThreads), 0, nullptr, a.data(),
                  out.data(), false);
  cudaMemcpyAsync(copy.data(), out.data(), kSize * sizeof(float), cudaMemcpyDeviceToDevice,
                  nullptr);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(nullptr, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph), cudaSuccess);
  cudaGraphDestroy(graph);
  EXPECT_TRUE(HasNan(copy)) << "recorded, not run";
  for (const float value : {1.0f, 3.0f}) {
    std::fill(x.begin(), x.end(), value);
    cudaGraphLaunch(executable, nullptr);
    EXPECT_EQ(copy, std::vector<float>(kSize, 4.0f * value));
  }
  cudaGraphExecDestroy(executable);
}

}  // namespace
}  // namespace vivarium::kernels::cuda
