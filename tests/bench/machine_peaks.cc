#include "tests/bench/machine_peaks.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vivarium::bench {
namespace {

constexpr int kTrials = 8;
constexpr size_t kReadBytes = size_t{512} << 20;
constexpr int64_t kFlopIterations = 2'000'000;
// Independent chains: enough to hide the latency of two units of five cycles.
constexpr int kChains = 12;

// Keeps `value` from being optimised away.
template <typename T>
void Consume(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

// Best seconds of kTrials in which all threads run work(thread index) at once: from the start of
// the first to the end of the last, or one thread's own time when the clock is that.
template <typename Work>
double BestSeconds(int num_threads, ClockFn clock, const Work& work) {
  double best = 1e30;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<double> begin(static_cast<size_t>(num_threads)), end(begin.size());
    std::vector<std::thread> threads;
    threads.reserve(begin.size());
    for (int i = 0; i < num_threads; ++i) {
      threads.emplace_back([&, i] {
        ++ready;
        while (!go.load()) std::this_thread::yield();
        begin[static_cast<size_t>(i)] = clock();
        work(i);
        end[static_cast<size_t>(i)] = clock();
      });
    }
    while (ready.load() < num_threads) std::this_thread::yield();
    go = true;
    for (std::thread& thread : threads) thread.join();
    best = std::min(best, *std::max_element(end.begin(), end.end()) -
                              *std::min_element(begin.begin(), begin.end()));
  }
  return best;
}

// Flops of one thread: kFlopIterations x kChains multiply-adds of the widest vector.
double PortableFlops() {
  float acc[kChains * 4];
  for (float& a : acc) a = 1.0f;
  constexpr int64_t kIterations = kFlopIterations / 4;
  for (int64_t i = 0; i < kIterations; ++i) {
    for (float& a : acc) a = a * 0.999f + 0.002f;
  }
  Consume(acc);
  return static_cast<double>(kIterations) * kChains * 4 * 2;
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double Avx2Flops() {
  __m256 acc[kChains];
  for (__m256& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 m = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.002f);
  for (int64_t i = 0; i < kFlopIterations; ++i) {
    for (__m256& a : acc) a = _mm256_fmadd_ps(a, m, b);
  }
  Consume(acc);
  return static_cast<double>(kFlopIterations) * kChains * 8 * 2;
}

__attribute__((target("avx512f"))) double Avx512Flops() {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512 m = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.002f);
  for (int64_t i = 0; i < kFlopIterations; ++i) {
    for (__m512& a : acc) a = _mm512_fmadd_ps(a, m, b);
  }
  Consume(acc);
  return static_cast<double>(kFlopIterations) * kChains * 16 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) double Avx512BF16Flops() {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_set1_ps(0.0f);
  const auto pairs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  for (int64_t i = 0; i < kFlopIterations; ++i) {
    for (__m512& a : acc) a = _mm512_dpbf16_ps(a, pairs, pairs);
  }
  Consume(acc);
  return static_cast<double>(kFlopIterations) * kChains * 32 * 2;
}
#endif

using FlopsFn = double (*)();

double FlopRate(int num_threads, ClockFn clock, FlopsFn run) {
  std::vector<double> flops(static_cast<size_t>(num_threads));
  const double seconds =
      BestSeconds(num_threads, clock, [&](int i) { flops[static_cast<size_t>(i)] = run(); });
  double total = 0.0;
  for (const double f : flops) total += f;
  return total / seconds;
}

// Reads `bytes` (a multiple of 512) once.
void PortableRead(const unsigned char* p, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(p);
  uint64_t sums[16] = {};
  for (size_t j = 0; j < bytes / sizeof(uint64_t); j += 16) {
    for (size_t lane = 0; lane < 16; ++lane) sums[lane] += words[j + lane];
  }
  Consume(sums);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void Avx2Read(const unsigned char* p, size_t bytes) {
  __m256i sums[4] = {};
  const size_t quarter = bytes / 4;
  for (size_t j = 0; j < quarter; j += 64) {
    for (size_t stream = 0; stream < 4; ++stream) {
      const unsigned char* line = p + stream * quarter + j;
      const __m256i lo = _mm256_load_si256(reinterpret_cast<const __m256i*>(line));
      const __m256i hi = _mm256_load_si256(reinterpret_cast<const __m256i*>(line + 32));
      sums[stream] = _mm256_add_epi32(sums[stream], _mm256_xor_si256(lo, hi));
    }
  }
  Consume(sums);
}
#endif

using ReadFn = void (*)(const unsigned char* p, size_t bytes);

double ReadRate(int num_threads, ClockFn clock, ReadFn read) {
  // On huge pages, as weights are.
  constexpr size_t kHugePageBytes = size_t{2} << 20;
  const std::unique_ptr<unsigned char, decltype(&std::free)> memory(
      static_cast<unsigned char*>(std::aligned_alloc(kHugePageBytes, kReadBytes)), std::free);
  if (memory == nullptr) return 0.0;
  (void)madvise(memory.get(), kReadBytes, MADV_HUGEPAGE);
  std::memset(memory.get(), 1, kReadBytes);
  const size_t share = kReadBytes / static_cast<size_t>(num_threads) / 512 * 512;
  const double seconds = BestSeconds(num_threads, clock, [&](int i) {
    read(memory.get() + static_cast<size_t>(i) * share, share);
  });
  return static_cast<double>(share) * num_threads / seconds;
}

}  // namespace

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double ThreadCpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

MachinePeaks MeasurePeaks(std::string_view isa, int num_threads, ClockFn clock) {
  MachinePeaks peaks{};
  peaks.read_bytes_per_s = ReadRate(num_threads, clock, PortableRead);
#if defined(__x86_64__)
  if (isa != "portable") {
    peaks.read_bytes_per_s =
        std::max(peaks.read_bytes_per_s, ReadRate(num_threads, clock, Avx2Read));
  }
  if (isa == "avx512") {
    peaks.f32_flops_per_s = FlopRate(num_threads, clock, Avx512Flops);
    peaks.bf16_flops_per_s = FlopRate(num_threads, clock, Avx512BF16Flops);
    return peaks;
  }
  if (isa == "avx2") {
    peaks.f32_flops_per_s = FlopRate(num_threads, clock, Avx2Flops);
    peaks.bf16_flops_per_s = peaks.f32_flops_per_s;
    return peaks;
  }
#endif
  peaks.f32_flops_per_s = FlopRate(num_threads, clock, PortableFlops);
  peaks.bf16_flops_per_s = peaks.f32_flops_per_s;
  return peaks;
}

}  // namespace vivarium::bench
