// engine_bench: the whole model of a known shape, random weights made on the spot, verified, then
// timed: decode at several batch sizes, prefill, and the engine's own loop with and without
// snapshots, each figure beside its floor.
//
//   engine_bench [--device cpu|cuda:N] [--shape 130m|...|2.8b] [--max-batch N] [--weights
//   bf16|f32|int8]
//                [--json] [--json-to FILE] [--quick] [--cpu-time] [--isa NAME] [--threads N]
//
// --cpu-time counts the CPU time of one thread (and means --threads 1), for machines that other
// work shares; the engine's loop has a thread of its own, and is left out then.
//
// Floors, from peaks measured in the same run on the same device (device_peaks.h; before, between
// and after the timings, the best of each: on a busy machine one measurement alone comes out low).
// A step reads every weight once and reads and writes each sequence's state: bytes / read
// bandwidth; its products take 2 flops per weight and token: flops / peak rate of the weights'
// dtype. The floor is the larger of the two. Prefill computes logits for the last token only, so
// its flops leave out the head.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "tests/bench/bench_options.h"
#include "tests/bench/device_peaks.h"
#include "tests/bench/engine_snapshots.h"
#include "tests/bench/random_checkpoint.h"
#include "tests/bench/shape_spec.h"
#include "tests/support/mamba_files.h"
#include "tests/support/model_harness.h"
#include "tests/support/temp_dir.h"

namespace vivarium::bench {
namespace {

using engine::WeightFormat;
using kernels::Segment;
using test::HarnessOptions;
using test::MambaSpec;
using test::ModelHarness;

constexpr int32_t kPrefillChunk = 512;
constexpr int32_t kVerifyChunk = 16;

WeightFormat FormatOf(const BenchOptions& options) {
  if (options.weights == "f32") return WeightFormat::kF32;
  return options.weights == "int8" ? WeightFormat::kInt8 : WeightFormat::kBF16;
}

MambaSpec SpecOf(const StackShape& shape, bool quick) {
  MambaSpec spec = SpecOf(shape);
  if (!quick) return spec;
  spec.num_layers = 2;
  spec.vocab_size = std::min<int64_t>(shape.vocab_size, 1000);
  return spec;
}

int32_t Token(int64_t sequence, int64_t position, int64_t vocab) {
  return static_cast<int32_t>((sequence * 7919 + position * 104729 + 11) % vocab);
}

// One decode step of `num_sequences` sequences, sequence i in slot i.
struct DecodeBatch {
  std::vector<int32_t> ids;
  std::vector<Segment> segments;
  std::vector<int32_t> rows;

  DecodeBatch(int32_t first_sequence, int32_t num_sequences, int64_t position, int64_t vocab) {
    for (int32_t i = 0; i < num_sequences; ++i) {
      const int32_t sequence = first_sequence + i;
      ids.push_back(Token(sequence, position, vocab));
      segments.push_back({i, 1, sequence, sequence});
      rows.push_back(i);
    }
  }
  engine::Batch batch() const { return {ids, segments, rows}; }
};

// Counts wrong results: rows of a full batch, and a chunked prefill's state and last logits, must
// have the bits of sequences that ran alone, token by token.
int Verify(ModelHarness* harness, int32_t num_sequences) {
  constexpr int64_t kPositions = 3;
  const int64_t vocab = harness->vocab();
  const size_t row_bytes = static_cast<size_t>(vocab) * sizeof(float);
  int num_wrong = 0;
  std::vector<float> batched;
  for (int32_t slot = 0; slot < num_sequences; ++slot) harness->ZeroSlot(slot);
  for (int64_t position = 0; position < kPositions; ++position) {
    batched = harness->Run(DecodeBatch(0, num_sequences, position, vocab).batch());
  }
  for (const int32_t sequence : std::set<int32_t>{0, num_sequences / 2, num_sequences - 1}) {
    const std::vector<std::byte> state = harness->ReadSlot(sequence);
    harness->ZeroSlot(sequence);
    std::vector<float> alone;
    for (int64_t position = 0; position < kPositions; ++position) {
      alone = harness->Run(DecodeBatch(sequence, 1, position, vocab).batch());
    }
    num_wrong += std::memcmp(alone.data(), &batched[sequence * vocab], row_bytes) != 0;
    num_wrong += harness->ReadSlot(sequence) != state;
  }

  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < 21; ++i) prompt.push_back(Token(5, i, vocab));
  harness->ZeroSlot(0);
  harness->ZeroSlot(1);
  const std::vector<float> chunked = harness->Feed(prompt, 0, kVerifyChunk);
  const std::vector<float> stepped = harness->Feed(prompt, 1, 1);
  num_wrong += std::memcmp(chunked.data(), stepped.data(), chunked.size() * sizeof(float)) != 0;
  num_wrong += harness->ReadSlot(0) != harness->ReadSlot(1);
  if (num_wrong > 0) std::fprintf(stderr, "WRONG: %d comparisons of bits differ\n", num_wrong);
  return num_wrong;
}

// Work of a step of num_tokens tokens, num_logits of them with logits, over num_sequences states.
struct Work {
  double bytes;
  double flops;
};

Work StepWork(const MambaSpec& spec, ModelHarness* harness, WeightFormat weights,
              int64_t num_tokens, int64_t num_logits, int64_t num_sequences) {
  const double element_bytes = weights == WeightFormat::kF32 ? 4 : 2;
  const double projection_bytes = weights == WeightFormat::kInt8 ? 1 : element_bytes;
  const double head = static_cast<double>(spec.vocab_size * spec.d_model);
  const double projections = static_cast<double>(spec.num_layers * 3 * spec.d_inner * spec.d_model);
  const double small_matrices =
      static_cast<double>(spec.num_layers * spec.d_inner * (2 * spec.dt_rank + 2 * spec.d_state));
  const double layers = projections + small_matrices;
  const double states = 2.0 * static_cast<double>(num_sequences) *
                        static_cast<double>(harness->model().state_layout().slot_bytes);
  const double scan = 7.0 * static_cast<double>(spec.num_layers * spec.d_inner * spec.d_state);
  return {(projections + (num_logits > 0 ? head : 0.0)) * projection_bytes +
              small_matrices * element_bytes + states,
          static_cast<double>(num_tokens) * (2.0 * layers + scan) +
              2.0 * static_cast<double>(num_logits) * head};
}

template <typename Run>
std::vector<double> TimeSeconds(int repeats, ClockFn clock, Run run) {
  run();  // warms caches and pages
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double begin = clock();
    run();
    seconds.push_back(clock() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

// What was timed, of which a row of the report is made when the peaks are known.
struct Figure {
  const char* what;
  int64_t size;
  int64_t num_tokens;
  std::vector<double> sorted_seconds;
  Work work;
};

nlohmann::json Row(const Figure& figure, const MachinePeaks& peaks, WeightFormat weights) {
  const auto& [what, size, num_tokens, sorted_seconds, work] = figure;
  double flops_per_s = peaks.f32_flops_per_s;
  if (weights == WeightFormat::kBF16) flops_per_s = peaks.bf16_flops_per_s;
  // vpdpbusd does twice what vdpbf16ps does; the little that stays bf16 is taken for int8.
  if (weights == WeightFormat::kInt8) flops_per_s = 2 * peaks.bf16_flops_per_s;
  const double bytes_s = work.bytes / peaks.read_bytes_per_s;
  const double flops_s = work.flops / flops_per_s;
  const double floor_s = std::max(bytes_s, flops_s);
  const double median = sorted_seconds[sorted_seconds.size() / 2];
  const double tokens = static_cast<double>(num_tokens);
  return {{"what", what},
          {"size", size},
          {"tokens_per_s", tokens / median},
          {"best_tokens_per_s", tokens / sorted_seconds.front()},
          {"median_ms", median * 1e3},
          {"best_ms", sorted_seconds.front() * 1e3},
          {"floor_ms", floor_s * 1e3},
          {"floor_tokens_per_s", tokens / floor_s},
          {"bound", bytes_s >= flops_s ? "bytes" : "flops"},
          {"of_floor", floor_s / median},
          {"best_of_floor", floor_s / sorted_seconds.front()}};
}

Figure Decode(const MambaSpec& spec, ModelHarness* harness, int32_t num_sequences, int repeats,
              ClockFn clock, WeightFormat weights) {
  for (int32_t slot = 0; slot < num_sequences; ++slot) harness->ZeroSlot(slot);
  int64_t position = 0;
  const auto seconds = TimeSeconds(repeats, clock, [&] {
    const DecodeBatch step(0, num_sequences, position++, harness->vocab());
    harness->model().Forward(step.batch(), harness->slots());
    harness->model().backend()->Synchronize();
  });
  const Work work = StepWork(spec, harness, weights, num_sequences, num_sequences, num_sequences);
  return {"decode", num_sequences, num_sequences, seconds, work};
}

Figure Prefill(const MambaSpec& spec, ModelHarness* harness, int32_t length, int repeats,
               ClockFn clock, WeightFormat weights) {
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < length; ++i) prompt.push_back(Token(1, i, harness->vocab()));
  const auto seconds = TimeSeconds(repeats, clock, [&] {
    for (int32_t begin = 0; begin < length; begin += kPrefillChunk) {
      const int32_t size = std::min(kPrefillChunk, length - begin);
      const Segment segment{0, size, begin == 0 ? kernels::kPadSlot : 0, 0};
      const std::vector<int32_t> rows =
          begin + size == length ? std::vector<int32_t>{size - 1} : std::vector<int32_t>{};
      harness->model().Forward({std::span(prompt).subspan(begin, size), {&segment, 1}, rows},
                               harness->slots());
    }
    harness->model().backend()->Synchronize();
  });
  Work work{};
  for (int32_t begin = 0; begin < length; begin += kPrefillChunk) {
    const Work chunk =
        StepWork(spec, harness, weights, std::min(kPrefillChunk, length - begin), 0, 1);
    work.bytes += chunk.bytes;
    work.flops += chunk.flops;
  }
  return {"prefill", length, length, seconds, work};
}

void Print(const nlohmann::json& row) {
  std::printf("%-8s %5ld %10.1f %10.1f %10.2f %10.2f  %-5s %10.1f %5.0f%% %5.0f%%\n",
              row["what"].get<std::string>().c_str(), row["size"].get<long>(),
              row["tokens_per_s"].get<double>(), row["best_tokens_per_s"].get<double>(),
              row["median_ms"].get<double>(), row["floor_ms"].get<double>(),
              row["bound"].get<std::string>().c_str(), row["floor_tokens_per_s"].get<double>(),
              row["of_floor"].get<double>() * 100, row["best_of_floor"].get<double>() * 100);
  std::fflush(stdout);
}

absl::StatusOr<std::unique_ptr<ModelHarness>> LoadRandom(const MambaSpec& spec,
                                                         const BenchOptions& options) {
  const test::TempDir directory;
  test::WriteFile(directory.File("config.json"), MambaConfigJson(spec));
  HarnessOptions harness_options;
  harness_options.device = options.device;
  harness_options.weights = FormatOf(options);
  harness_options.num_threads = options.num_threads;
  harness_options.isa = options.isa;
  harness_options.max_batch_tokens = std::max(kPrefillChunk, options.max_batch);
  harness_options.max_logit_rows = std::max(kVerifyChunk, options.max_batch);
  harness_options.num_slots = options.max_batch;
  return ModelHarness::LoadFrom(RandomCheckpoint(spec), directory.path(), harness_options);
}

// Times everything; `peaks` receives the best of three measurements.
std::vector<Figure> Measure(const MambaSpec& spec, ModelHarness* harness,
                            const BenchOptions& options, MachinePeaks* peaks) {
  kernels::Backend* const backend = harness->model().backend();
  const ClockFn clock = options.clock();
  const bool is_small = options.shape->name == "tiny";
  *peaks = {};
  const auto measure_peaks = [&] {
    const MachinePeaks again =
        MeasureDevicePeaks(backend, clock, is_small ? size_t{1} << 16 : kCopyBytes);
    peaks->read_bytes_per_s = std::max(peaks->read_bytes_per_s, again.read_bytes_per_s);
    peaks->f32_flops_per_s = std::max(peaks->f32_flops_per_s, again.f32_flops_per_s);
    peaks->bf16_flops_per_s = std::max(peaks->bf16_flops_per_s, again.bf16_flops_per_s);
    peaks->how = again.how;
  };
  std::vector<Figure> figures;
  measure_peaks();
  for (const int32_t num_sequences : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    if (num_sequences > options.max_batch) break;
    figures.push_back(
        Decode(spec, harness, num_sequences, options.quick ? 2 : 20, clock, FormatOf(options)));
  }
  measure_peaks();
  for (const int32_t length : {512, 2048}) {
    if (is_small && length > 512) break;
    figures.push_back(
        Prefill(spec, harness, length, options.quick ? 1 : 3, clock, FormatOf(options)));
  }
  measure_peaks();
  return figures;
}

void PrintHeader(const nlohmann::json& report) {
  std::printf("%s, %s; %d threads; read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s (%s)\n",
              report["model"].get<std::string>().c_str(),
              report["numerics"].get<std::string>().c_str(), report["threads"].get<int>(),
              report["read_gb_per_s"].get<double>(), report["f32_gflop_per_s"].get<double>(),
              report["bf16_gflop_per_s"].get<double>(), report["peaks"].get<std::string>().c_str());
  std::printf("%-8s %5s %10s %10s %10s %10s  %-5s %10s %6s %6s\n", "what", "size", "tok/s", "best",
              "ms", "floor ms", "bound", "floor t/s", "of", "best");
}

void PrintReport(const nlohmann::json& report) {
  PrintHeader(report);
  for (const nlohmann::json& row : report["rows"]) Print(row);
  if (!report.contains("snapshots")) return;
  const nlohmann::json& s = report["snapshots"];
  std::printf(
      "engine   %5d %10.1f tok/s; %10.1f with snapshots every %d tokens (%d of %d bytes): "
      "%.2f %% at every 1,000\n",
      s["streams"].get<int>(), s["tokens_per_s_without"].get<double>(),
      s["tokens_per_s_with"].get<double>(), s["every_tokens"].get<int>(), s["count"].get<int>(),
      report["slot_bytes"].get<int>(), s["percent_per_1000"].get<double>());
}

absl::Status MeasureSnapshots(ModelHarness* harness, const BenchOptions& options,
                              nlohmann::json* report) {
  constexpr uint32_t kEvery = 50;
  const int32_t num_streams = std::min(options.max_batch, options.on_cpu() ? 8 : 64);
  const uint32_t num_tokens = options.quick ? kEvery + 10 : options.on_cpu() ? 100 : 400;
  const auto cost = MeasureSnapshotCost(&harness->model(), num_streams, num_tokens, kEvery,
                                        options.quick ? 1 : 3);
  if (!cost.ok()) return cost.status();
  (*report)["snapshots"] = {{"streams", num_streams},
                            {"every_tokens", kEvery},
                            {"count", cost->num_snapshots},
                            {"tokens_per_s_without", cost->tokens_per_s_without},
                            {"tokens_per_s_with", cost->tokens_per_s_with},
                            {"percent_per_1000", cost->percent_per_1000}};
  return absl::OkStatus();
}

nlohmann::json Report(ModelHarness* harness, const BenchOptions& options, const MachinePeaks& peaks,
                      const std::vector<Figure>& figures) {
  const std::string shape = std::string(options.shape->name) + (options.quick ? ", quick" : "");
  nlohmann::json report = {{"model", "mamba-" + shape + ", random weights"},
                           {"device", options.device},
                           {"numerics", std::string(harness->model().numerics_id())},
                           {"threads", harness->model().backend()->num_threads()},
                           {"weight_bytes", harness->model().weight_bytes()},
                           {"activation_bytes", harness->model().activation_bytes()},
                           {"slot_bytes", harness->model().state_layout().slot_bytes},
                           {"read_gb_per_s", peaks.read_bytes_per_s / 1e9},
                           {"f32_gflop_per_s", peaks.f32_flops_per_s / 1e9},
                           {"bf16_gflop_per_s", peaks.bf16_flops_per_s / 1e9},
                           {"peaks", peaks.how},
                           {"rows", nlohmann::json::array()}};
  for (const Figure& figure : figures)
    report["rows"].push_back(Row(figure, peaks, FormatOf(options)));
  return report;
}

int Main(int argc, char** argv) {
  CLI::App app("The whole model, random weights: verified, then timed.");
  BenchOptions options;
  options.Declare(&app, 2);
  if (!options.Parse(&app, argc, argv)) return 2;
  const MambaSpec spec = SpecOf(*options.shape, options.quick);
  const auto loaded = LoadRandom(spec, options);
  if (!loaded.ok()) {
    std::fprintf(stderr, "%s\n", loaded.status().ToString().c_str());
    return 2;
  }
  ModelHarness* harness = loaded->get();
  if (Verify(harness, options.max_batch) != 0) return 1;
  MachinePeaks peaks{};
  const std::vector<Figure> figures = Measure(spec, harness, options, &peaks);
  nlohmann::json report = Report(harness, options, peaks, figures);
  if (!options.cpu_time) {
    if (const absl::Status status = MeasureSnapshots(harness, options, &report); !status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return 1;
    }
  }
  if (options.json) {
    std::printf("%s\n", report.dump(1).c_str());
  } else {
    PrintReport(report);
  }
  if (!options.json_to.empty()) std::ofstream(options.json_to) << report.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
