// The shim itself: what it must show, it shows.
#include "tests/cuda_on_cpu/cuda_on_cpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cuda/device.h"

namespace vivarium::kernels::cuda {
namespace {

using ::testing::HasSubstr;

// Reverses each block's 64 values through shared memory.
void ReverseKernel(const float* x, float* out) {
  DYNAMIC_SHARED(float, shared);
  const unsigned base = blockIdx.x * 64;
  shared[threadIdx.x] = x[base + threadIdx.x];
  __syncthreads();
  out[base + threadIdx.x] = shared[63 - threadIdx.x];
}

std::vector<float> Reverse() {
  std::vector<float> x(256), out(256, NAN);
  std::iota(x.begin(), x.end(), 0.0f);
  const float* x_data = x.data();
  float* out_data = out.data();
  LAUNCH(ReverseKernel, dim3(4), dim3(64), 64 * sizeof(float), cudaStream_t{}, x_data, out_data);
  return out;
}

bool Reversed(const std::vector<float>& out) {
  for (int i = 0; i < 256; ++i) {
    if (out[i] != static_cast<float>(i / 64 * 64 + 63 - i % 64)) return false;
  }
  return true;
}

TEST(CudaOnCpu, RunsBlocksWithBarriers) {
  EXPECT_TRUE(Reversed(Reverse()));
  EXPECT_EQ(cuda_on_cpu::LastLaunchCounts().barriers, 1);
  EXPECT_EQ(cuda_on_cpu::LastError(), "");
}

TEST(CudaOnCpu, ADroppedBarrierShows) {
  cuda_on_cpu::InjectFault({cuda_on_cpu::Fault::Kind::kSkipBarrier, 0});
  EXPECT_FALSE(Reversed(Reverse()));
  cuda_on_cpu::InjectFault({});
  EXPECT_TRUE(Reversed(Reverse()));
}

TEST(CudaOnCpu, AMissingBlockShows) {
  cuda_on_cpu::InjectFault({cuda_on_cpu::Fault::Kind::kDropLastBlock, 0});
  EXPECT_FALSE(Reversed(Reverse()));
  cuda_on_cpu::InjectFault({});
}

void DivergentKernel(int) {
  if (threadIdx.x < 10) __syncthreads();
  WarpSum(1.0f);
}

TEST(CudaOnCpu, ADivergentBarrierIsReported) {
  LAUNCH(DivergentKernel, dim3(1), dim3(64), 0, cudaStream_t{}, 0);
  EXPECT_THAT(cuda_on_cpu::LastError(), HasSubstr("divergent collective in block (0,0,0)"));
  EXPECT_TRUE(Reversed(Reverse())) << "the machine works on";
}

void TwoSitesKernel(int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(CudaOnCpu, BarriersAtTwoPlacesDoNotMeet) {
  LAUNCH(TwoSitesKernel, dim3(1), dim3(64), 0, cudaStream_t{}, 0);
  EXPECT_THAT(cuda_on_cpu::LastError(), HasSubstr("divergent"));
}

// `wait`: whether the copies are waited for.
void CopyKernel(const float* x, float* out, bool wait) {
  DYNAMIC_SHARED(float, shared);
  CopyAsync4(shared + threadIdx.x, x + threadIdx.x);
  CopyCommit();
  if (wait) CopyWait<0>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

TEST(CudaOnCpu, ACopyIsThereAfterItsWaitOnly) {
  const std::vector<float> x(32, 5.0f);
  std::vector<float> out(32);
  const float* x_data = x.data();
  float* out_data = out.data();
  LAUNCH(CopyKernel, dim3(1), dim3(32), 128, cudaStream_t{}, x_data, out_data, true);
  EXPECT_EQ(out, x);
  LAUNCH(CopyKernel, dim3(1), dim3(32), 128, cudaStream_t{}, x_data, out_data, false);
  const auto is_nan = [](float value) { return std::isnan(value); };
  EXPECT_TRUE(std::any_of(out.begin(), out.end(), is_nan)) << "half of the copies come late";
}

TEST(CudaOnCpu, RefusesImpossibleLaunches) {
  LAUNCH(DivergentKernel, dim3(1), dim3(1025), 0, cudaStream_t{}, 0);
  EXPECT_THAT(cuda_on_cpu::LastError(), HasSubstr("1025 threads"));
  LAUNCH(DivergentKernel, dim3(1), dim3(32), 228 * 1024, cudaStream_t{}, 0);
  EXPECT_THAT(cuda_on_cpu::LastError(), HasSubstr("233472 bytes"));
  LAUNCH(DivergentKernel, dim3(0), dim3(32), 0, cudaStream_t{}, 0);
  EXPECT_THAT(cuda_on_cpu::LastError(), HasSubstr("0 blocks"));
}

// mma against plain sums: lane maps of the PTX manual.
void MmaKernel(const uint16_t* a, const uint16_t* b, float* c) {
  const int g = threadIdx.x / 4;
  const int t = threadIdx.x % 4;
  const auto pair = [](const uint16_t* p) { return static_cast<uint32_t>(p[0]) | p[1] << 16; };
  const MmaA fragment_a = {{pair(a + g * 16 + 2 * t), pair(a + (g + 8) * 16 + 2 * t),
                            pair(a + g * 16 + 2 * t + 8), pair(a + (g + 8) * 16 + 2 * t + 8)}};
  const MmaB fragment_b = {{pair(b + g * 16 + 2 * t), pair(b + g * 16 + 2 * t + 8)}};
  MmaC sums = {};
  MmaBF16(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[(g + (i >= 2 ? 8 : 0)) * 8 + 2 * t + i % 2] = sums.values[i];
}

TEST(CudaOnCpu, MmaMultiplies) {
  std::vector<uint16_t> a(16 * 16), b(8 * 16);  // a [row][k], b [column][k]
  for (size_t i = 0; i < a.size(); ++i) a[i] = FloatToBF16Bits(static_cast<float>(i % 13) - 6.0f);
  for (size_t i = 0; i < b.size(); ++i) b[i] = FloatToBF16Bits(static_cast<float>(i % 7) - 3.0f);
  std::vector<float> c(16 * 8);
  const uint16_t* a_data = a.data();
  const uint16_t* b_data = b.data();
  float* c_data = c.data();
  LAUNCH(MmaKernel, dim3(1), dim3(32), 0, cudaStream_t{}, a_data, b_data, c_data);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) {
        sum += BF16BitsToFloat(a[row * 16 + k]) * BF16BitsToFloat(b[column * 16 + k]);
      }
      EXPECT_EQ(c[row * 8 + column], sum);
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels::cuda
