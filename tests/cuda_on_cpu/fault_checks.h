// Whether a fault that is injected into a launch shows in what it fills (fault_test.cc).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/kernels/guarded_array.h"

namespace vivarium::kernels {

using cuda_on_cpu::Fault;

// Runs `launch`, which fills an array, with and without the fault; the order of threads is random,
// so a few times. True when a difference showed.
inline bool Shows(const Fault& fault, const std::function<std::vector<float>()>& launch) {
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

// Barriers and waits of `launch`, as many as `counts` says. `harmless`: barriers whose loss can't
// show because what they guard never happened before or after them in this launch.
inline void ExpectEveryCollectiveShows(const std::function<std::vector<float>()>& launch,
                                       const cuda_on_cpu::LaunchCounts& counts,
                                       const std::vector<int>& harmless) {
  for (int i = 0; i < counts.barriers; ++i) {
    const bool expected = std::find(harmless.begin(), harmless.end(), i) == harmless.end();
    EXPECT_EQ(Shows({Fault::Kind::kSkipBarrier, i}, launch), expected)
        << "barrier " << i << " of " << counts.barriers;
  }
  for (int i = 0; i < counts.async_waits; ++i) {
    EXPECT_TRUE(Shows({Fault::Kind::kSkipAsyncWait, i}, launch))
        << "wait " << i << " of " << counts.async_waits;
  }
}

inline void ExpectEveryFaultShows(const std::function<std::vector<float>()>& launch,
                                  const std::vector<int>& harmless) {
  launch();
  ExpectEveryCollectiveShows(launch, cuda_on_cpu::LastLaunchCounts(), harmless);
  EXPECT_TRUE(Shows({Fault::Kind::kDropLastBlock, 0}, launch));
}

inline std::vector<float> RandomVector(int64_t size, uint64_t seed) {
  std::vector<float> values(size);
  RandomValues(seed).Fill(values.data(), size);
  return values;
}

}  // namespace vivarium::kernels
