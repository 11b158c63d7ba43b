#include "tests/bench/bench_options.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <limits>

#include "kernels/backend.h"

namespace vivarium::bench {

void BenchOptions::Declare(CLI::App* app, int32_t min_max_batch) {
  app->add_option("--device", device, "cpu or cuda:N")->capture_default_str();
  app->add_option_function<std::string>(
         "--shape", [this](const std::string& name) { shape = FindShape(name); }, ShapeNames())
      ->check([](const std::string& name) {
        return FindShape(name) != nullptr ? "" : "'" + name + "': expected " + ShapeNames();
      });
  app->add_option("--max-batch", max_batch, "Sequences at once; default: 64 on the CPU, else 256")
      ->check(CLI::Range(min_max_batch, std::numeric_limits<int32_t>::max()));
  app->add_option("--weights", weights, "bf16, f32 or int8")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  app->add_flag("--json", json, "Print one JSON object");
  app->add_option("--json-to", json_to, "Write it to this file too");
  app->add_flag("--quick", quick, "Verify, and time just enough to see that it runs");
  app->add_flag("--cpu-time", cpu_time, "Count the CPU time of one thread");
  app->add_option("--isa", isa, "portable, avx2 or avx512; default: the best");
  app->add_option("--threads", num_threads, "CPU threads; default: one per core")
      ->check(CLI::Range(1, kernels::kMaxThreads));
}

bool BenchOptions::Parse(CLI::App* app, int argc, char** argv) {
  try {
    app->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    app->exit(error);
    return false;
  }
  if (max_batch == 0) max_batch = on_cpu() ? 64 : 256;
  if (cpu_time) num_threads = 1;
  return true;
}

}  // namespace vivarium::bench
