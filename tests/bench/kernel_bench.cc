// kernel_bench: every op of a forward pass of the mamba-130m shape, verified against the
// double-precision reference, then timed in its place in the pass, beside its floor.
//
//   kernel_bench [--json] [--quick] [--prefill] [--cpu-time] [--isa NAME] [--threads N] [--weights
//   f32|bf16]
//
// The floor of an op is the larger of bytes / read bandwidth and flops / peak rate, both measured
// in the same run; `of floor` = floor / best time. On a machine that others share, look at `best`,
// or count the CPU time of one thread (--cpu-time, which means --threads 1).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/bench/machine_peaks.h"
#include "tests/bench/mamba_stack.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::bench {
namespace {

using kernels::Backend;
using kernels::DType;

struct Options {
  bool json = false;
  bool prefill_only = false;
  bool cpu_time = false;
  bool quick = false;  // verify, and time just enough to see that it runs
  std::string isa;
  int num_threads = 0;
  std::vector<DType> weights = {DType::kBF16, DType::kF32};
};

// Compares with the reference; counts what is out of tolerance.
class Verifier final : public StackObserver {
 public:
  explicit Verifier(bool rounds_activations) : rounds_activations_(rounds_activations) {}
  int num_wrong() const { return num_wrong_; }

  void OnLinear(StackOp op, const kernels::LinearParams& params,
                const std::vector<float>& weight) override {
    const int64_t cols = params.weight->cols(), rows = params.weight->rows();
    constexpr int64_t kSamples = 500;
    for (int64_t i = 0; i < kSamples; ++i) {
      const int64_t t = i * 7919 % params.num_tokens, n = i * 104729 % rows;
      std::vector<float> x(params.x + t * params.x_stride, params.x + t * params.x_stride + cols);
      for (float& v : x) {
        if (rounds_activations_) v = kernels::BF16ToF32(kernels::F32ToBF16(v));
      }
      const kernels::Reference expected =
          kernels::ReferenceLinear(x.data(), cols, weight.data() + n * cols, nullptr, 1, 1, cols);
      Check(op, params.out[t * params.out_stride + n], expected, 0, kernels::kTolerances.linear);
    }
  }
  void OnConv(const kernels::CausalConv1dParams& params, int64_t num_tokens) override {
    const kernels::Reference out = ReferenceCausalConv1d(params, num_tokens).out;
    CheckRows(StackOp::kConv, params.out, params.out_stride, out, params.channels,
              kernels::kTolerances.conv);
  }
  void OnScan(const kernels::SelectiveScanParams& params, int64_t num_tokens) override {
    const kernels::Reference out = ReferenceSelectiveScan(params, num_tokens).out;
    CheckRows(StackOp::kScan, params.y, params.y_stride, out, params.channels,
              kernels::kTolerances.scan_y);
  }
  void OnNorm(const kernels::RmsNormParams& params, const std::function<void()>& run) override {
    const kernels::Reference out = ReferenceRmsNorm(params);
    run();
    CheckRows(StackOp::kNorm, params.out, params.out_stride, out, params.channels,
              kernels::kTolerances.rms_norm);
  }

 private:
  void CheckRows(StackOp op, const float* found, int64_t stride, const kernels::Reference& expected,
                 int64_t channels, double tolerance) {
    for (size_t i = 0; i < expected.value.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      Check(op, found[at / channels * stride + at % channels], expected, i, tolerance);
    }
  }
  void Check(StackOp op, float found, const kernels::Reference& expected, size_t i,
             double tolerance) {
    if (std::abs(found - expected.value[i]) <= tolerance * expected.magnitude[i] + 1e-37) return;
    if (++num_wrong_ > 5) return;
    std::fprintf(stderr, "WRONG: %s element %zu: expected %g, found %g\n",
                 kStackOpNames[static_cast<size_t>(op)].data(), i, expected.value[i],
                 static_cast<double>(found));
  }

  const bool rounds_activations_;
  int num_wrong_ = 0;
};

struct Timing {
  PerOp best, median;
  double best_total, median_total;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

Timing Time(MambaStack* stack, const StackBatch& batch, int num_steps) {
  std::vector<std::vector<double>> seconds(kNumStackOps);
  std::vector<double> totals;
  for (int step = 0; step < num_steps; ++step) {
    const PerOp once = stack->Step(batch, false, nullptr);
    double total = 0.0;
    for (size_t op = 0; op < kNumStackOps; ++op) {
      seconds[op].push_back(once[op]);
      total += once[op];
    }
    totals.push_back(total);
  }
  Timing timing{};
  for (size_t op = 0; op < kNumStackOps; ++op) {
    timing.best[op] = *std::min_element(seconds[op].begin(), seconds[op].end());
    timing.median[op] = Median(seconds[op]);
  }
  timing.best_total = *std::min_element(totals.begin(), totals.end());
  timing.median_total = Median(totals);
  return timing;
}

nlohmann::json Row(const StackBatch& batch, DType weights, std::string_view op, double best,
                   double median, double bytes_s, double flops_s) {
  const double floor = std::max(bytes_s, flops_s);
  return {{"weights", std::string(DTypeName(weights))},
          {"sequences", batch.num_sequences},
          {"tokens", batch.num_tokens()},
          {"op", std::string(op)},
          {"best_us", best * 1e6},
          {"median_us", median * 1e6},
          {"floor_us", floor * 1e6},
          {"bound", bytes_s >= flops_s ? "bytes" : "flops"},
          {"of_floor", floor / best},
          {"tokens_per_s", static_cast<double>(batch.num_tokens()) / best}};
}

void Print(const nlohmann::json& row) {
  std::printf("%-5s %4ld %5ld  %-9s %10.1f %10.1f %10.1f  %-5s %5.0f%%",
              row["weights"].get<std::string>().c_str(), row["sequences"].get<long>(),
              row["tokens"].get<long>(), row["op"].get<std::string>().c_str(),
              row["best_us"].get<double>(), row["median_us"].get<double>(),
              row["floor_us"].get<double>(), row["bound"].get<std::string>().c_str(),
              row["of_floor"].get<double>() * 100);
  if (row["op"] == "step") std::printf("  %.1f tok/s", row["tokens_per_s"].get<double>());
  std::printf("\n");
}

// Verifies, times and reports one batch. Returns the number of wrong elements.
int RunBatch(Backend* backend, MambaStack* stack, const StackBatch& batch, DType weights,
             const MachinePeaks& peaks, const Options& options, nlohmann::json* rows) {
  Verifier verifier(weights == DType::kBF16 && backend->isa() == "avx512");
  stack->Step(batch, true, &verifier);
  const int num_steps = options.quick ? 1 : batch.num_tokens() > 64 ? 5 : 15;
  const Timing timing = Time(stack, batch, num_steps);
  const PerOp bytes = stack->Bytes(batch), flops = stack->Flops(batch);
  double total_floor = 0.0;
  for (size_t op = 0; op < kNumStackOps; ++op) {
    const bool linear =
        op == static_cast<size_t>(StackOp::kInProj) || op == static_cast<size_t>(StackOp::kXProj) ||
        op == static_cast<size_t>(StackOp::kDtProj) ||
        op == static_cast<size_t>(StackOp::kOutProj) || op == static_cast<size_t>(StackOp::kLmHead);
    const double rate =
        linear && weights == DType::kBF16 ? peaks.bf16_flops_per_s : peaks.f32_flops_per_s;
    const double bytes_s = bytes[op] / peaks.read_bytes_per_s, flops_s = flops[op] / rate;
    total_floor += std::max(bytes_s, flops_s);
    rows->push_back(Row(batch, weights, kStackOpNames[op], timing.best[op], timing.median[op],
                        bytes_s, flops_s));
    if (!options.json) Print(rows->back());
  }
  rows->push_back(
      Row(batch, weights, "step", timing.best_total, timing.median_total, total_floor, 0.0));
  rows->back()["bound"] = "sum";
  if (!options.json) Print(rows->back());
  return verifier.num_wrong();
}

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool has_value = i + 1 < argc;
    if (arg == "--json") {
      options->json = true;
    } else if (arg == "--quick") {
      options->quick = true;
    } else if (arg == "--cpu-time") {
      options->cpu_time = true;
    } else if (arg == "--prefill") {
      options->prefill_only = true;
    } else if (arg == "--isa" && has_value) {
      options->isa = argv[++i];
    } else if (arg == "--threads" && has_value) {
      options->num_threads = std::atoi(argv[++i]);
    } else if (arg == "--weights" && has_value) {
      options->weights = {std::strcmp(argv[++i], "f32") == 0 ? DType::kF32 : DType::kBF16};
    } else {
      std::fprintf(stderr,
                   "usage: kernel_bench [--json] [--quick] [--prefill] [--cpu-time] [--isa "
                   "portable|avx2|avx512]"
                   " [--threads N] [--weights f32|bf16]\n");
      return false;
    }
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, &options)) return 2;
  const ClockFn clock = options.cpu_time ? ThreadCpuSeconds : WallSeconds;
  if (options.cpu_time) options.num_threads = 1;
  std::string error;
  const std::unique_ptr<Backend> backend =
      Backend::Create("cpu", {options.num_threads, options.isa}, &error);
  if (backend == nullptr) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  const MachinePeaks peaks = MeasurePeaks(backend->isa(), backend->num_threads(), clock);
  nlohmann::json report = {{"numerics", backend->numerics_name()},
                           {"threads", backend->num_threads()},
                           {"read_gb_per_s", peaks.read_bytes_per_s / 1e9},
                           {"f32_gflop_per_s", peaks.f32_flops_per_s / 1e9},
                           {"bf16_gflop_per_s", peaks.bf16_flops_per_s / 1e9},
                           {"rows", nlohmann::json::array()}};
  if (!options.json) {
    std::printf("%s, %d threads; read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s\n",
                backend->numerics_name().c_str(), backend->num_threads(),
                peaks.read_bytes_per_s / 1e9, peaks.f32_flops_per_s / 1e9,
                peaks.bf16_flops_per_s / 1e9);
    std::printf("%-5s %4s %5s  %-9s %10s %10s %10s  %-5s %6s\n", "w", "seqs", "toks", "op",
                "best us", "median us", "floor us", "bound", "of");
  }
  StackShape shape = kMamba130m;
  if (options.quick) {
    shape.num_layers = 2;
    shape.vocab_size = 1000;
  }
  std::vector<StackBatch> batches;
  for (const int64_t sequences : {1, 2, 4, 8, 16, 32, 64}) {
    if (!options.prefill_only) batches.push_back({sequences, 1});
  }
  batches.push_back({1, options.quick ? 40 : 512});
  int num_wrong = 0;
  for (const DType weights : options.weights) {
    MambaStack stack(backend.get(), shape, weights, 512, 64, clock);
    for (const StackBatch& batch : batches) {
      num_wrong += RunBatch(backend.get(), &stack, batch, weights, peaks, options, &report["rows"]);
    }
  }
  if (options.json) std::printf("%s\n", report.dump(1).c_str());
  if (num_wrong != 0) std::fprintf(stderr, "%d results out of tolerance\n", num_wrong);
  return num_wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
