#include "tests/bench/device_peaks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

namespace vivarium::bench {
namespace {

using kernels::Backend;
using kernels::DType;

constexpr int kTrials = 8;

template <typename Run>
double BestSeconds(Backend* backend, ClockFn clock, const Run& run) {
  double best = 1e30;
  for (int trial = 0; trial < kTrials; ++trial) {
    backend->Synchronize();
    const double begin = clock();
    run();
    backend->Synchronize();
    best = std::min(best, clock() - begin);
  }
  return best;
}

double CopyRate(Backend* backend, ClockFn clock, size_t bytes) {
  void* const from = backend->Allocate(bytes);
  void* const to = backend->Allocate(bytes);
  double rate = 0.0;
  if (from != nullptr && to != nullptr) {
    const double seconds =
        BestSeconds(backend, clock, [&] { backend->CopyOnDevice(to, from, bytes); });
    rate = 2.0 * static_cast<double>(bytes) / seconds;
  }
  backend->Free(from);
  backend->Free(to);
  return rate;
}

// Flops a second of [tokens, size] times [size, size].
double ProductRate(Backend* backend, ClockFn clock, DType weights, int64_t tokens, int64_t size) {
  std::vector<float> w(static_cast<size_t>(size * size));
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i % 251) * 0.01f - 1.25f;
  const auto packed = backend->Pack(w.data(), DType::kF32, size, size, weights);
  const auto bytes = static_cast<size_t>(tokens * size) * sizeof(float);
  auto* const x = static_cast<float*>(backend->Allocate(bytes));
  auto* const out = static_cast<float*>(backend->Allocate(bytes));
  double rate = 0.0;
  if (packed != nullptr && x != nullptr && out != nullptr) {
    for (int64_t at = 0; at < tokens * size; at += size * size) {
      const int64_t count = std::min(size * size, tokens * size - at);
      backend->CopyToDevice(x + at, w.data(), static_cast<size_t>(count) * sizeof(float));
    }
    const double seconds = BestSeconds(backend, clock, [&] {
      backend->Linear({x, size, packed.get(), nullptr, out, size, tokens});
    });
    rate = 2.0 * static_cast<double>(tokens) * static_cast<double>(size * size) / seconds;
  }
  backend->Free(x);
  backend->Free(out);
  return rate;
}

}  // namespace

MachinePeaks MeasureDevicePeaks(Backend* backend, ClockFn clock, size_t copy_bytes) {
  if (backend->device() == "cpu") {
    return MeasurePeaks(backend->isa(), backend->num_threads(), clock);
  }
  const bool big = copy_bytes >= kCopyBytes;  // else emulated: just to see that it runs
  MachinePeaks peaks{};
  peaks.read_bytes_per_s = CopyRate(backend, clock, copy_bytes);
  peaks.bf16_flops_per_s =
      ProductRate(backend, clock, DType::kBF16, big ? 4096 : 8, big ? 8192 : 64);
  peaks.f32_flops_per_s = ProductRate(backend, clock, DType::kF32, big ? 512 : 8, big ? 4096 : 64);
  peaks.how = "read: copy within the device, both directions counted; products: Backend::Linear";
  return peaks;
}

}  // namespace vivarium::bench
