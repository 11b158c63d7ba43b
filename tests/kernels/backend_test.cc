#include "kernels/backend.h"

#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/isa_fixture.h"

namespace vivarium::kernels {
namespace {

using testing::HasSubstr;

std::string CreateError(std::string_view device, const BackendOptions& options) {
  std::string error;
  EXPECT_EQ(Backend::Create(device, options, &error), nullptr);
  return error;
}

TEST(Backend, RefusesUnknownDevicesByName) {
  EXPECT_THAT(CreateError("tpu", {}), HasSubstr("\"tpu\""));
  EXPECT_THAT(CreateError("", {}), HasSubstr("\"\""));
  EXPECT_THAT(CreateError("cpu:0", {}), HasSubstr("\"cpu:0\""));
}

TEST(Backend, RefusesUnknownIsas) {
  BackendOptions options;
  options.isa = "sse9";
  EXPECT_THAT(CreateError("cpu", options), HasSubstr("\"sse9\""));
  options.isa = "AVX2";
  EXPECT_THAT(CreateError("cpu", options), HasSubstr("\"AVX2\""));
}

TEST(Backend, BoundsTheNumberOfThreads) {
  BackendOptions options;
  options.num_threads = kMaxThreads + 1;
  EXPECT_THAT(CreateError("cpu", options), HasSubstr(std::to_string(kMaxThreads + 1)));
  options.num_threads = -1;
  EXPECT_THAT(CreateError("cpu", options), HasSubstr("-1"));
  EXPECT_EQ(MakeCpuBackend("", kMaxThreads)->num_threads(), kMaxThreads);
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  EXPECT_EQ(MakeCpuBackend("", 0)->num_threads(), std::max(cores, 1));
}

TEST(Backend, BestIsaIsTheDefault) {
  if (!test::TestsRunOnCpu()) GTEST_SKIP() << "the CPU's choice";
  EXPECT_EQ(MakeCpuBackend("", 1)->isa(), AvailableIsas().back());
}

class BackendTest : public IsaTest {};
VIVARIUM_FOR_EACH_ISA(BackendTest);

TEST_P(BackendTest, NamesItsNumerics) {
  EXPECT_EQ(MakeBackend(1)->device(), test::TestDevice());
  EXPECT_EQ(MakeBackend(1)->isa(), GetParam());
  const std::string name = test::TestsRunOnCpu() ? "cpu-" + GetParam() : "cuda";
  EXPECT_THAT(MakeBackend(1)->numerics_name(), HasSubstr(name + "-v"));
  EXPECT_EQ(MakeBackend(1)->numerics_name(), MakeBackend(3)->numerics_name());
}

TEST_P(BackendTest, AllocatesAlignedZeroedMemory) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (const size_t bytes :
       {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{3} << 20}) {
    auto* memory = static_cast<unsigned char*>(backend->Allocate(bytes));
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
    std::vector<unsigned char> host(bytes, 1);
    backend->CopyToHost(host.data(), memory, bytes);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(host[i], 0) << i;
    backend->Free(memory);
  }
  backend->Free(nullptr);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they abort on such a size
TEST_P(BackendTest, ReturnsNullWhenMemoryRunsOut) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  EXPECT_EQ(backend->Allocate(std::numeric_limits<size_t>::max()), nullptr);
  EXPECT_EQ(backend->Allocate(std::numeric_limits<size_t>::max() / 4), nullptr);
}
#endif

TEST_P(BackendTest, CopiesAndZeroes) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  std::vector<float> host = {1, 2, 3, 4};
  auto* device = static_cast<float*>(backend->Allocate(8 * sizeof(float)));
  backend->CopyToDevice(device, host.data(), 4 * sizeof(float));
  backend->CopyOnDevice(device + 4, device, 4 * sizeof(float));
  backend->Zero(device, 2 * sizeof(float));
  std::vector<float> back(8);
  backend->CopyToHost(back.data(), device, 8 * sizeof(float));
  EXPECT_EQ(back, (std::vector<float>{0, 0, 3, 4, 1, 2, 3, 4}));
  backend->CopyToDevice(nullptr, nullptr, 0);
  backend->CopyToHost(nullptr, nullptr, 0);
  backend->CopyOnDevice(nullptr, nullptr, 0);
  backend->Zero(nullptr, 0);
  backend->Synchronize();
  backend->Free(device);
}

}  // namespace
}  // namespace vivarium::kernels
