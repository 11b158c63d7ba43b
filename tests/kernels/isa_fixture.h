// Runs a test once for each instruction-set path that this machine has.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

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

inline std::vector<std::string> AvailableIsas() {
  std::vector<std::string> isas;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    std::string error;
    BackendOptions options;
    options.isa = isa;
    options.num_threads = 1;
    if (Backend::Create("cpu", options, &error) != nullptr) isas.emplace_back(isa);
  }
  return isas;
}

class IsaTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> MakeBackend(int num_threads = 1) const {
    return MakeCpuBackend(GetParam(), num_threads);
  }
};

inline std::string IsaTestName(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

#define VIVARIUM_FOR_EACH_ISA(Fixture) \
  INSTANTIATE_TEST_SUITE_P(Isa, Fixture, testing::ValuesIn(AvailableIsas()), IsaTestName)

}  // namespace vivarium::kernels
