// kernel_bench: every op of a forward pass of a model's shape, verified against the
// double-precision reference, then timed in its place in the pass, beside its floor.
//
//   kernel_bench [--device cpu|cuda:N] [--shape 130m|...|2.8b] [--max-batch N] [--prefill]
//                [--weights f32|bf16|int8] [--json] [--json-to FILE] [--quick] [--probe]
//                [--cpu-time] [--isa NAME] [--threads N]
//
// The floor of an op is the larger of bytes / read bandwidth and flops / peak rate, both measured
// in the same run on the same device (device_peaks.h); `of floor` = floor / best time. On a machine
// that others share, look at `best`, or count the CPU time of one thread (--cpu-time, which means
// --threads 1). "step" is the pass by these ops, "fused" by the backend's fused ones. --probe only
// says whether the device is there.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/bench/bench_options.h"
#include "tests/bench/device_peaks.h"
#include "tests/bench/mamba_stack.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::bench {
namespace {

using kernels::Backend;
using kernels::DType;

struct Options : BenchOptions {
  bool prefill_only = false;
  bool probe = false;
};

std::vector<DType> WeightsOf(const Options& options) {
  if (options.weights.empty()) return {DType::kBF16, DType::kI8, DType::kF32};
  return {options.weights == "f32"    ? DType::kF32
          : options.weights == "int8" ? DType::kI8
                                      : DType::kBF16};
}

// Compares with the reference; counts what is out of tolerance.
class Verifier final : public StackObserver {
 public:
  explicit Verifier(std::string_view isa) : isa_(isa) {}
  int num_wrong() const { return num_wrong_; }

  void OnLinear(StackOp op, const kernels::LinearParams& params,
                const std::vector<float>& weight) override {
    const int64_t cols = params.weight->cols(), rows = params.weight->rows();
    constexpr int64_t kSamples = 500;
    for (int64_t i = 0; i < kSamples; ++i) {
      const int64_t t = i * 7919 % params.num_tokens, n = i * 104729 % rows;
      std::vector<float> x(params.x + t * params.x_stride, params.x + t * params.x_stride + cols);
      RoundActivations(params.weight->dtype(), &x);
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
  void OnNorm(const kernels::RmsNormParams& params) override {
    const kernels::Reference out = ReferenceRmsNorm(params);
    CheckRows(StackOp::kNorm, params.out, params.out_stride, out, params.channels,
              kernels::kTolerances.rms_norm);
  }

 private:
  // As the paths do that round (ops.h).
  void RoundActivations(DType weights, std::vector<float>* x) const {
    if (weights == DType::kF32 || (isa_ != "avx512" && isa_ != "cuda")) return;
    if (weights == DType::kBF16 || isa_ == "cuda") {
      for (float& v : *x) v = kernels::BF16ToF32(kernels::F32ToBF16(v));
      return;
    }
    constexpr size_t kGroup = 128;
    for (size_t begin = 0; begin < x->size(); begin += kGroup) {
      const auto group = std::span(*x).subspan(begin, std::min(kGroup, x->size() - begin));
      float largest = 0.0f;
      for (const float v : group) largest = std::max(largest, std::abs(v));
      const float scale = largest / 127.0f;
      for (float& v : group) v = scale == 0.0f ? 0.0f : std::nearbyint(v * (1.0f / scale)) * scale;
    }
  }
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

  const std::string isa_;
  int num_wrong_ = 0;
};

struct Timing {
  PerOp best, median;
  double best_total, median_total;
  double best_fused, median_fused;  // 0: none
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

double Least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

Timing Time(MambaStack* stack, const StackBatch& batch, int num_steps) {
  std::vector<std::vector<double>> seconds(kNumStackOps);
  std::vector<double> totals, fused;
  for (int step = 0; step < num_steps; ++step) {
    const StepTimes once = stack->Step(batch);
    for (size_t op = 0; op < kNumStackOps; ++op) seconds[op].push_back(once.op_seconds[op]);
    totals.push_back(once.seconds);
    if (const auto again = stack->FusedStep(batch)) fused.push_back(*again);
  }
  Timing timing{};
  for (size_t op = 0; op < kNumStackOps; ++op) {
    timing.best[op] = Least(seconds[op]);
    timing.median[op] = Median(seconds[op]);
  }
  timing.best_total = Least(totals);
  timing.median_total = Median(totals);
  if (!fused.empty()) {
    timing.best_fused = Least(fused);
    timing.median_fused = Median(fused);
  }
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
  if (row["bound"] == "sum") std::printf("  %.1f tok/s", row["tokens_per_s"].get<double>());
  std::printf("\n");
}

bool IsLinear(size_t op) {
  constexpr std::array<StackOp, 5> kLinear = {StackOp::kInProj, StackOp::kXProj, StackOp::kDtProj,
                                              StackOp::kOutProj, StackOp::kLmHead};
  return std::find(kLinear.begin(), kLinear.end(), static_cast<StackOp>(op)) != kLinear.end();
}

// Verifies, times and reports one batch. Returns the number of wrong elements.
int RunBatch(Backend* backend, MambaStack* stack, const StackBatch& batch, DType weights,
             const MachinePeaks& peaks, const Options& options, nlohmann::json* rows) {
  Verifier verifier(backend->isa());
  stack->Verify(batch, &verifier);
  const int num_steps = options.quick ? 1 : batch.num_tokens() > 64 ? 5 : 15;
  const Timing timing = Time(stack, batch, num_steps);
  const PerOp bytes = stack->Bytes(batch), flops = stack->Flops(batch);
  double total_floor = 0.0;
  const auto report = [&](std::string_view op, double best, double median, double bytes_s,
                          double flops_s, bool is_sum) {
    rows->push_back(Row(batch, weights, op, best, median, bytes_s, flops_s));
    if (is_sum) rows->back()["bound"] = "sum";
    if (!options.json) Print(rows->back());
  };
  // vpdpbusd does twice what vdpbf16ps does; where there is none, int8 is widened.
  const double bf16_rate = peaks.bf16_flops_per_s;
  const double int8_rate = backend->isa() == "avx512" ? 2 * bf16_rate
                           : backend->isa() == "cuda" ? bf16_rate
                                                      : peaks.f32_flops_per_s;
  for (size_t op = 0; op < kNumStackOps; ++op) {
    const bool is_small =
        op == static_cast<size_t>(StackOp::kXProj) || op == static_cast<size_t>(StackOp::kDtProj);
    double rate = peaks.f32_flops_per_s;
    if (IsLinear(op) && weights != DType::kF32) {
      rate = weights == DType::kI8 && !is_small ? int8_rate : bf16_rate;
    }
    const double bytes_s = bytes[op] / peaks.read_bytes_per_s, flops_s = flops[op] / rate;
    total_floor += std::max(bytes_s, flops_s);
    report(kStackOpNames[op], timing.best[op], timing.median[op], bytes_s, flops_s, false);
  }
  report("step", timing.best_total, timing.median_total, total_floor, 0.0, true);
  if (timing.best_fused > 0.0) {
    report("fused", timing.best_fused, timing.median_fused, total_floor, 0.0, true);
  }
  return verifier.num_wrong();
}

void PrintHeader(const nlohmann::json& report) {
  std::printf("%s, %s; %d threads; read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s (%s)\n",
              report["shape"].get<std::string>().c_str(),
              report["numerics"].get<std::string>().c_str(), report["threads"].get<int>(),
              report["read_gb_per_s"].get<double>(), report["f32_gflop_per_s"].get<double>(),
              report["bf16_gflop_per_s"].get<double>(), report["peaks"].get<std::string>().c_str());
  std::printf("%-5s %4s %5s  %-9s %10s %10s %10s  %-5s %6s\n", "w", "seqs", "toks", "op", "best us",
              "median us", "floor us", "bound", "of");
}

// All batches. Returns the number of wrong elements.
int Measure(Backend* backend, const Options& options, const MachinePeaks& peaks, ClockFn clock,
            nlohmann::json* rows) {
  StackShape shape = *options.shape;
  if (options.quick) {
    shape.num_layers = 2;
    shape.vocab_size = std::min<int64_t>(shape.vocab_size, 1000);
  }
  std::vector<StackBatch> batches;
  for (const int64_t sequences : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    if (!options.prefill_only && sequences <= options.max_batch) batches.push_back({sequences, 1});
  }
  constexpr int64_t kPrefillTokens = 512;
  batches.push_back({1, options.quick ? 40 : kPrefillTokens});
  int num_wrong = 0;
  for (const DType weights : WeightsOf(options)) {
    MambaStack stack(backend, shape, weights, kPrefillTokens, options.max_batch, clock);
    for (const StackBatch& batch : batches) {
      num_wrong += RunBatch(backend, &stack, batch, weights, peaks, options, rows);
    }
  }
  return num_wrong;
}

int Main(int argc, char** argv) {
  CLI::App app("Every op of a forward pass: verified, then timed.");
  Options options;
  options.Declare(&app, 1);
  app.add_flag("--prefill", options.prefill_only, "Only the prefill");
  app.add_flag("--probe", options.probe, "Only say whether the device is there");
  if (!options.Parse(&app, argc, argv)) return 2;
  const ClockFn clock = options.clock();
  std::string error;
  const std::unique_ptr<Backend> backend =
      Backend::Create(options.device, {options.num_threads, options.isa}, &error);
  if (backend == nullptr) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  if (options.probe) {
    std::printf("%s: %s\n", options.device.c_str(), backend->numerics_name().c_str());
    return 0;
  }
  const bool is_small = options.shape->name == "tiny";
  const MachinePeaks peaks =
      MeasureDevicePeaks(backend.get(), clock, is_small ? size_t{1} << 16 : kCopyBytes);
  nlohmann::json report = {{"shape", std::string(options.shape->name)},
                           {"device", options.device},
                           {"numerics", backend->numerics_name()},
                           {"threads", backend->num_threads()},
                           {"read_gb_per_s", peaks.read_bytes_per_s / 1e9},
                           {"f32_gflop_per_s", peaks.f32_flops_per_s / 1e9},
                           {"bf16_gflop_per_s", peaks.bf16_flops_per_s / 1e9},
                           {"peaks", peaks.how},
                           {"rows", nlohmann::json::array()}};
  if (!options.json) PrintHeader(report);
  const int num_wrong = Measure(backend.get(), options, peaks, clock, &report["rows"]);
  report["wrong"] = num_wrong;
  if (options.json) std::printf("%s\n", report.dump(1).c_str());
  if (!options.json_to.empty()) std::ofstream(options.json_to) << report.dump(1) << "\n";
  if (num_wrong != 0) std::fprintf(stderr, "%d results out of tolerance\n", num_wrong);
  return num_wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
