// The options that kernel_bench and engine_bench have in common.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <string>

#include "tests/bench/machine_peaks.h"
#include "tests/bench/model_shapes.h"

namespace vivarium::bench {

struct BenchOptions {
  std::string device = "cpu";
  const StackShape* shape = FindShape("130m");
  int32_t max_batch = 0;  // sequences at once; after Parse never 0: 64 on the CPU, else 256
  std::string weights;    // "bf16", "f32", "int8"; "" = not given
  bool json = false;
  std::string json_to;
  bool quick = false;     // verify, and time just enough to see that it runs
  bool cpu_time = false;  // of one thread, which then is all there is
  std::string isa;
  int num_threads = 0;

  void Declare(CLI::App* app, int32_t min_max_batch);
  // False when the command line was wrong, or asked for help; said already.
  bool Parse(CLI::App* app, int argc, char** argv);

  bool on_cpu() const { return device == "cpu"; }
  ClockFn clock() const { return cpu_time ? ThreadCpuSeconds : WallSeconds; }
};

}  // namespace vivarium::bench
