// The flags of `vivarium bench`, and what they mean together.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/driver.h"
#include "cli/bench/load_client.h"
#include "cli/bench/prompts.h"
#include "cli/bench/summary.h"
#include "cli/bench/workload.h"
#include "cli/flags.h"

namespace vivarium::cli::bench {

inline constexpr int kMaxUsers = 100'000;
inline constexpr double kMaxRate = 1e5;
inline constexpr int kMaxConnections = 1'000;
inline constexpr int kMaxLoads = 50;       // of one invocation
inline constexpr int kMaxSweepLoads = 20;  // of --sweep
inline constexpr int kMaxCpus = 1024;

// What is to be run: loads one after the other, each with a workload of its own.
struct Plan {
  std::vector<LoadOptions> loads;
  WorkloadOptions workload;
  std::vector<Prompt> prompts;
  std::vector<TraceRow> trace;
  LoadClientOptions client;
  Slo slo;
  std::vector<int> cpus;
};

struct BenchFlags {
  std::string users, rates, arrivals = "poisson", trace, mix = "fresh", think = "0", slo, cpus;
  std::string input = "128", output = "128", long_input = "2048", context = "512", prompts;
  std::string json_file, records_file, html_file;
  double duration = 0, warmup = 0, stagger = 0, burstiness = 1, ramp_to = 0, trace_speed = 1;
  double cancel_rate = 0, slow_rate = 0, slow_read_ms = 100, temperature = 1, grace = 60;
  uint64_t requests = 0, seed = 1;
  int connections = 4, max_in_flight = 10'000, repeat = 1;
  int fork_children = 8, threads = 64, states = 16;
  bool sweep = false, stop_at_eos = false, same_prompts = false, quiet = false;
  JsonFlag json;
  ConnectionFlags connection;

  void Declare(CLI::App* app);
  // INVALID_ARGUMENT for flags that are wrong, alone or together; else as reading files failed.
  absl::StatusOr<Plan> Resolve() const;

 private:
  void DeclareLoad(CLI::App* app);
  void DeclareRequests(CLI::App* app);
  void DeclareOutput(CLI::App* app);
  absl::Status ResolveWorkload(Plan* plan) const;
  absl::Status ResolveLoads(Plan* plan) const;
};

// "0-1,3" as 0, 1, 3. INVALID_ARGUMENT naming what is wrong.
absl::StatusOr<std::vector<int>> ParseCpus(const std::string& text);

}  // namespace vivarium::cli::bench
