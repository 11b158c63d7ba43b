// sampling_bench: SampleTokens on rows of 50,277 logits, verified against the plain sampler, then
// timed, beside its floor: one read of the logits.
//
//   sampling_bench [--json] [--quick] [--isa NAME] [--threads N] [--rows N] [--cpu-time]
//
// The rows' logits are normal with deviation 2, a new row for each repetition in turn, so that they
// come from beyond the second-level cache, as after the head's product.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "nlohmann/json.hpp"
#include "tests/bench/machine_peaks.h"
#include "tests/kernels/reference_sampler.h"

namespace vivarium::bench {
namespace {

using kernels::Backend;
using kernels::SampledToken;
using kernels::SampleRow;

constexpr int64_t kNumIds = 50277;
constexpr int64_t kNumLogitRows = 64;

struct Options {
  bool json = false;
  bool quick = false;  // verify, and time just enough to see that it runs
  bool cpu_time = false;
  std::string isa;
  int num_threads = 1;
  int64_t num_rows = 1;
};

struct Case {
  const char* name;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  int32_t num_top_logprobs;
};
constexpr Case kCases[] = {
    {"greedy", 0.0f, 0, 1.0f, 0.0f, -1},
    {"temperature 1", 1.0f, 0, 1.0f, 0.0f, -1},
    {"temperature 1, logprobs of 5", 1.0f, 0, 1.0f, 0.0f, 5},
    {"top_k 40", 1.0f, 40, 1.0f, 0.0f, -1},
    {"top_k 40, top_p 0.9", 0.8f, 40, 0.9f, 0.0f, -1},
    {"top_p 0.9", 1.0f, 0, 0.9f, 0.0f, -1},
    {"top_p 0.99, temperature 1.5", 1.5f, 0, 0.99f, 0.0f, -1},
    {"min_p 0.05", 1.0f, 0, 1.0f, 0.05f, -1},
};

// Rows of one op; each call takes the next rows of logits and the next position.
class Step {
 public:
  Step(Backend* backend, const Case& c, int64_t num_rows)
      : backend_(backend), logits_(kNumLogitRows * kNumIds), rows_(num_rows), tokens_(num_rows) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal(0.0f, 2.0f);
    for (float& logit : logits_) logit = normal(random);
    top_.resize(static_cast<size_t>(num_rows) * kernels::kMaxTopLogprobs);
    for (SampleRow& row : rows_) {
      row = {};
      row.temperature = c.temperature;
      row.top_k = c.top_k;
      row.top_p = c.top_p;
      row.min_p = c.min_p;
      row.repetition_penalty = 1.0f;
      row.given_id = -1;
      row.num_top_logprobs = c.num_top_logprobs;
      row.seed = 7;
    }
  }

  void Run() {
    for (SampleRow& row : rows_) {
      row.position = ++position_;
      row.logit_row = static_cast<int64_t>(position_) % kNumLogitRows;
    }
    kernels::SampleTokensParams params{};
    params.logits = logits_.data();
    params.logits_stride = kNumIds;
    params.num_ids = kNumIds;
    params.rows = rows_.data();
    params.num_rows = static_cast<int64_t>(rows_.size());
    params.tokens = tokens_.data();
    params.top = top_.data();
    backend_->SampleTokens(params);
  }

  // Rows whose token is not the plain sampler's.
  int NumWrong() {
    Run();
    kernels::ReferenceSampler sampler(kNumIds);
    int num_wrong = 0;
    for (size_t r = 0; r < rows_.size(); ++r) {
      const std::span<const float> logits(&logits_[rows_[r].logit_row * kNumIds], kNumIds);
      const SampledToken expected = sampler.Sample({logits, rows_[r]});
      num_wrong += tokens_[r].token_id != expected.token_id || tokens_[r].status != expected.status;
    }
    return num_wrong;
  }

 private:
  Backend* const backend_;
  std::vector<float> logits_;
  std::vector<SampleRow> rows_;
  std::vector<SampledToken> tokens_;
  std::vector<kernels::RankedToken> top_;
  uint64_t position_ = 0;
};

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
    } else if (arg == "--isa" && has_value) {
      options->isa = argv[++i];
    } else if (arg == "--threads" && has_value) {
      options->num_threads = std::atoi(argv[++i]);
    } else if (arg == "--rows" && has_value) {
      options->num_rows = std::clamp<int64_t>(std::atol(argv[++i]), 1, kNumLogitRows);
    } else {
      std::fprintf(stderr,
                   "usage: sampling_bench [--json] [--quick] [--cpu-time] [--isa NAME] "
                   "[--threads N] [--rows 1..64]\n");
      return false;
    }
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, &options)) return 2;
  const ClockFn clock = options.cpu_time ? ThreadCpuSeconds : WallSeconds;
  std::string error;
  const auto backend = Backend::Create("cpu", {options.num_threads, options.isa}, &error);
  if (backend == nullptr) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  const MachinePeaks peaks = MeasurePeaks(backend->isa(), backend->num_threads(), clock);
  const double floor_us =
      static_cast<double>(kNumIds * sizeof(float)) / peaks.read_bytes_per_s * 1e6;
  nlohmann::json report = {{"numerics", backend->numerics_name()},
                           {"threads", backend->num_threads()},
                           {"rows_of_a_step", options.num_rows},
                           {"floor_us_a_row", floor_us},
                           {"rows", nlohmann::json::array()}};
  if (!options.json) {
    std::printf("%s, %d threads, %ld rows of %ld; floor %.1f us a row\n",
                backend->numerics_name().c_str(), backend->num_threads(),
                static_cast<long>(options.num_rows), static_cast<long>(kNumIds), floor_us);
  }
  int num_wrong = 0;
  for (const Case& c : kCases) {
    Step step(backend.get(), c, options.num_rows);
    num_wrong += step.NumWrong();
    std::vector<double> us;
    for (int i = 0; i < (options.quick ? 3 : 400); ++i) {
      const double begin = clock();
      step.Run();
      us.push_back((clock() - begin) * 1e6 / static_cast<double>(options.num_rows));
    }
    std::sort(us.begin(), us.end());
    report["rows"].push_back(
        {{"case", c.name}, {"best_us_a_row", us[0]}, {"median_us_a_row", us[us.size() / 2]}});
    if (!options.json) {
      std::printf("%-30s best %7.1f us a row, median %7.1f\n", c.name, us[0], us[us.size() / 2]);
    }
  }
  if (options.json) std::printf("%s\n", report.dump(1).c_str());
  if (num_wrong != 0) std::fprintf(stderr, "%d tokens are wrong\n", num_wrong);
  return num_wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
