// What this machine can do at best, measured in the same run as what is held against it.
#pragma once

#include <string_view>

namespace vivarium::bench {

struct MachinePeaks {
  double read_bytes_per_s;  // streaming reads of memory far larger than the caches
  double f32_flops_per_s;   // fused multiply-adds (2 each) of the instruction-set path
  double bf16_flops_per_s;  // likewise of bf16 pairs; the f32 rate where the path has none
  // How they were measured.
  const char* how = "streaming reads and multiply-adds of all threads, in registers";
};

// A clock: seconds since some moment.
using ClockFn = double (*)();
double WallSeconds();
// CPU time of the calling thread: for a machine whose cores are shared with other work, and one
// thread. What others do to caches and memory still counts.
double ThreadCpuSeconds();

// Runs on num_threads threads at once, for the path named `isa` ("portable", "avx2", "avx512"; must
// be available). Takes about a second; the best of several trials.
MachinePeaks MeasurePeaks(std::string_view isa, int num_threads, ClockFn clock);

}  // namespace vivarium::bench
