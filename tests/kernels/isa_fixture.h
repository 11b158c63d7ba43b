// Runs a test once for each instruction-set path that this machine has (or for kernels/cuda).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/staged_backend.h"
#include "tests/support/test_environment.h"

namespace vivarium::kernels {

inline std::unique_ptr<Backend> MakeCpuBackend(const std::string& isa, int num_threads) {
  std::string error;
  BackendOptions options;
  options.isa = isa;
  options.num_threads = num_threads;
  std::unique_ptr<Backend> backend = Backend::Create("cpu", options, &error);
  EXPECT_NE(backend, nullptr) << error;
  return backend;
}

#if defined(VIVARIUM_TEST_CUDA_ON_CPU)
// The same tests against kernels/cuda (tests/cuda_on_cpu): device memory is host memory there.
inline constexpr bool kEmulated = true;  // thousands of times slower: fewer repetitions
inline bool OperandsAreStaged() { return false; }
inline std::vector<std::string> AvailableIsas() { return {"cuda"}; }
inline std::unique_ptr<Backend> MakeBackendOf(const std::string&, int) {
  std::string error;
  std::unique_ptr<Backend> backend = Backend::Create("cuda:0", {.deterministic = true}, &error);
  EXPECT_NE(backend, nullptr) << error;
  return backend;
}
#else
// Against the CPU backend, or the device that VIVARIUM_TEST_DEVICE names, with operands staged.
inline constexpr bool kEmulated = false;
inline bool OperandsAreStaged() {
  return !test::TestsRunOnCpu() || test::EnvironmentOr("VIVARIUM_TEST_STAGED", "0") == "1";
}
inline std::unique_ptr<Backend> MakeBackendOf(const std::string& isa, int num_threads) {
  if (test::TestsRunOnCpu()) {
    std::unique_ptr<Backend> backend = MakeCpuBackend(isa, num_threads);
    return OperandsAreStaged() && backend != nullptr ? MakeStagedBackend(std::move(backend))
                                                     : std::move(backend);
  }
  std::string error;
  std::unique_ptr<Backend> backend =
      Backend::Create(test::TestDevice(), {.deterministic = true}, &error);
  EXPECT_NE(backend, nullptr) << error;
  return backend == nullptr ? nullptr : MakeStagedBackend(std::move(backend));
}

inline std::vector<std::string> AvailableIsas() {
  if (!test::TestsRunOnCpu()) return test::TestIsas();
  std::vector<std::string> isas;
  for (const std::string& isa : test::TestIsas()) {
    std::string error;
    BackendOptions options;
    options.isa = isa;
    options.num_threads = 1;
    if (Backend::Create("cpu", options, &error) != nullptr) isas.emplace_back(isa);
  }
  return isas;
}
#endif

class IsaTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> MakeBackend(int num_threads = 1) const {
    return MakeBackendOf(GetParam(), num_threads);
  }
};

inline std::string IsaTestName(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

#define VIVARIUM_FOR_EACH_ISA(Fixture) \
  INSTANTIATE_TEST_SUITE_P(Isa, Fixture, testing::ValuesIn(AvailableIsas()), IsaTestName)

}  // namespace vivarium::kernels
