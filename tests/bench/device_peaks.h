// What a backend's device can do at best, measured in the same run as what is held against it.
#pragma once

#include "kernels/backend.h"
#include "tests/bench/machine_peaks.h"

namespace vivarium::bench {

// The CPU: MeasurePeaks of its path and threads. Another device: a copy of `copy_bytes` within its
// memory (read and written bytes both count), and big products through Backend::Linear, which is
// the best means that this build has; `how` says so. Zeros where memory runs out.
MachinePeaks MeasureDevicePeaks(kernels::Backend* backend, ClockFn clock, size_t copy_bytes);
inline constexpr size_t kCopyBytes = size_t{1} << 30;

}  // namespace vivarium::bench
