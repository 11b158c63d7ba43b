// engine_bench: the whole model (mamba-130m's shape, random weights made on the spot), verified,
// then timed: decode at several batch sizes and prefill, each figure beside its floor.
//
//   engine_bench [--json] [--quick] [--cpu-time] [--isa NAME] [--threads N] [--weights bf16|f32]
//
// --cpu-time counts the CPU time of one thread (and means --threads 1), for machines that other
// work shares.
//
// Floors, from peaks measured in the same run with the same threads (before, between and after the
// timings, the best of each: on a busy machine one measurement alone comes out low). A step reads
// every weight once and reads and writes each sequence's state: bytes / read bandwidth; its
// products take 2 flops per weight and token: flops / peak rate of the weights' dtype. The floor is
// the larger of the two. Prefill computes logits for the last token only, so its flops leave out
// the head.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/bench/machine_peaks.h"
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

constexpr int32_t kMaxSequences = 64;
constexpr int32_t kPrefillChunk = 512;

struct Options {
  bool json = false;
  bool cpu_time = false;
  bool quick = false;  // a small model and few steps: to see that all of it runs and verifies
  std::string isa;
  int num_threads = 0;
  WeightFormat weights = WeightFormat::kBF16;
};

MambaSpec Mamba130m(bool quick) {
  MambaSpec spec;
  spec.num_layers = quick ? 2 : 24;
  spec.d_model = 768;
  spec.d_inner = 1536;
  spec.d_state = 16;
  spec.d_conv = 4;
  spec.dt_rank = 48;
  spec.vocab_size = quick ? 1000 : 50280;
  spec.dtype = kernels::DType::kBF16;
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
int Verify(ModelHarness* harness) {
  constexpr int64_t kPositions = 3;
  const int64_t vocab = harness->vocab();
  const size_t row_bytes = static_cast<size_t>(vocab) * sizeof(float);
  int num_wrong = 0;
  std::vector<float> batched;
  for (int32_t slot = 0; slot < kMaxSequences; ++slot) harness->ZeroSlot(slot);
  for (int64_t position = 0; position < kPositions; ++position) {
    batched = harness->Run(DecodeBatch(0, kMaxSequences, position, vocab).batch());
  }
  for (const int32_t sequence : {0, 1, 31, kMaxSequences - 1}) {
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
  const std::vector<float> chunked = harness->Feed(prompt, 0, 16);
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
  const double head = static_cast<double>(spec.vocab_size * spec.d_model);
  const double layer = static_cast<double>(3 * spec.d_inner * spec.d_model +
                                           (spec.dt_rank + 2 * spec.d_state) * spec.d_inner +
                                           spec.d_inner * spec.dt_rank);
  const double layers = layer * static_cast<double>(spec.num_layers);
  const double states = 2.0 * static_cast<double>(num_sequences) *
                        static_cast<double>(harness->model().state_layout().slot_bytes);
  const double scan = 7.0 * static_cast<double>(spec.num_layers * spec.d_inner * spec.d_state);
  return {(layers + (num_logits > 0 ? head : 0.0)) * element_bytes + states,
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
  const double flops_per_s =
      weights == WeightFormat::kF32 ? peaks.f32_flops_per_s : peaks.bf16_flops_per_s;
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

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (arg == "--json") {
      options->json = true;
    } else if (arg == "--cpu-time") {
      options->cpu_time = true;
    } else if (arg == "--quick") {
      options->quick = true;
    } else if (arg == "--isa" && !value.empty()) {
      options->isa = value;
      ++i;
    } else if (arg == "--threads" && std::atoi(value.c_str()) > 0) {
      options->num_threads = std::atoi(value.c_str());
      ++i;
    } else if (arg == "--weights" && (value == "bf16" || value == "f32")) {
      options->weights = value == "f32" ? WeightFormat::kF32 : WeightFormat::kBF16;
      ++i;
    } else {
      std::fprintf(
          stderr,
          "usage: engine_bench [--json] [--quick] [--cpu-time] [--isa portable|avx2|avx512]"
          " [--threads N] [--weights bf16|f32]\n");
      return false;
    }
  }
  return true;
}

absl::StatusOr<std::unique_ptr<ModelHarness>> LoadRandom(const MambaSpec& spec,
                                                         const Options& options) {
  const test::TempDir directory = test::TempDir::InMemory();
  WriteMambaModel(spec, directory.path());
  HarnessOptions harness_options;
  harness_options.weights = options.weights;
  harness_options.num_threads = options.num_threads;
  harness_options.isa = options.isa;
  harness_options.max_batch_tokens = kPrefillChunk;
  harness_options.max_logit_rows = kMaxSequences;
  harness_options.num_slots = kMaxSequences;
  return ModelHarness::Load(directory.path(), harness_options);
}

// Times everything; `peaks` receives the best of three measurements.
std::vector<Figure> Measure(const MambaSpec& spec, ModelHarness* harness, const Options& options,
                            MachinePeaks* peaks) {
  const kernels::Backend& backend = *harness->model().backend();
  const ClockFn clock = options.cpu_time ? ThreadCpuSeconds : WallSeconds;
  *peaks = {};
  const auto measure_peaks = [&] {
    const MachinePeaks again = MeasurePeaks(backend.isa(), backend.num_threads(), clock);
    peaks->read_bytes_per_s = std::max(peaks->read_bytes_per_s, again.read_bytes_per_s);
    peaks->f32_flops_per_s = std::max(peaks->f32_flops_per_s, again.f32_flops_per_s);
    peaks->bf16_flops_per_s = std::max(peaks->bf16_flops_per_s, again.bf16_flops_per_s);
  };
  std::vector<Figure> figures;
  measure_peaks();
  for (const int32_t num_sequences : {1, 4, 8, 16, 32, kMaxSequences}) {
    figures.push_back(
        Decode(spec, harness, num_sequences, options.quick ? 2 : 20, clock, options.weights));
  }
  measure_peaks();
  for (const int32_t length : {512, 2048}) {
    figures.push_back(
        Prefill(spec, harness, length, options.quick ? 1 : 3, clock, options.weights));
  }
  measure_peaks();
  return figures;
}

void PrintHeader(const nlohmann::json& report) {
  std::printf("%s, %d threads; read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s\n",
              report["numerics"].get<std::string>().c_str(), report["threads"].get<int>(),
              report["read_gb_per_s"].get<double>(), report["f32_gflop_per_s"].get<double>(),
              report["bf16_gflop_per_s"].get<double>());
  std::printf("%-8s %5s %10s %10s %10s %10s  %-5s %10s %6s %6s\n", "what", "size", "tok/s", "best",
              "ms", "floor ms", "bound", "floor t/s", "of", "best");
}

int Main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, &options)) return 2;
  if (options.cpu_time) options.num_threads = 1;
  const MambaSpec spec = Mamba130m(options.quick);
  const auto loaded = LoadRandom(spec, options);
  if (!loaded.ok()) {
    std::fprintf(stderr, "%s\n", loaded.status().ToString().c_str());
    return 2;
  }
  ModelHarness* harness = loaded->get();
  if (Verify(harness) != 0) return 1;
  MachinePeaks peaks{};
  const std::vector<Figure> figures = Measure(spec, harness, options, &peaks);
  nlohmann::json report = {{"model", options.quick ? "quick" : "mamba-130m shape, random weights"},
                           {"numerics", std::string(harness->model().numerics_id())},
                           {"threads", harness->model().backend()->num_threads()},
                           {"weight_bytes", harness->model().weight_bytes()},
                           {"activation_bytes", harness->model().activation_bytes()},
                           {"slot_bytes", harness->model().state_layout().slot_bytes},
                           {"read_gb_per_s", peaks.read_bytes_per_s / 1e9},
                           {"f32_gflop_per_s", peaks.f32_flops_per_s / 1e9},
                           {"bf16_gflop_per_s", peaks.bf16_flops_per_s / 1e9},
                           {"rows", nlohmann::json::array()}};
  for (const Figure& figure : figures)
    report["rows"].push_back(Row(figure, peaks, options.weights));
  if (options.json) {
    std::printf("%s\n", report.dump(1).c_str());
    return 0;
  }
  PrintHeader(report);
  for (const nlohmann::json& row : report["rows"]) Print(row);
  return 0;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
