// A shared library with cuBLASLt's functions that computes on the host, for tests of what calls it.
// A test opens it by dlopen too, and finds Fake() by the name "fake_cublaslt".
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

struct FakeCublasLt {
  // How products are run: the emulated device's stream (cuda_on_cpu::RunOrRecord).
  std::function<void(std::function<void()>)> run;
  bool starts = true;
  bool finds_algorithms = true;
  int failing_matmul = -1;  // the how manieth product fails, from 0

  struct Query {
    uint64_t rows, cols, tokens;
  };
  std::vector<Query> queries;  // of algorithms
  std::vector<Query> matmuls;
  int num_descs = 0, num_layouts = 0, num_preferences = 0, num_handles = 0;  // alive
  std::string wrong;  // the first call that the library would have refused
};
extern "C" FakeCublasLt* fake_cublaslt();
