// `vivarium bench`: load tests of a server, and comparisons of their results.
#include <sched.h>

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/bench/bench_flags.h"
#include "cli/bench/compare.h"
#include "cli/bench/live_view.h"
#include "cli/bench/report.h"
#include "cli/bench/runner.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/output_file.h"
#include "cli/token_ids.h"

namespace vivarium::cli {
namespace {

using bench::BenchFlags;

constexpr char kFooter[] =
    "Latency counts from when a request was due, not from when the client got round to it.\n"
    "TTFT: until the first token. TPOT: mean time per token after it, one figure a request. ITL:\n"
    "every wait between two messages with tokens, undivided where one carries several.\n"
    "\n"
    "Examples:\n"
    "  vivarium bench --users 32 --mix fresh=0.9,long=0.1 --duration 60 --warmup 5 --json\n"
    "  vivarium bench --rate 2,4,8,16 --html report.html --slo ttft=500,tpot=50\n"
    "  vivarium bench --rate 1 --sweep --arrivals gamma --burstiness 0.5\n"
    "  vivarium bench --users 16 --mix thread=3,fork=1,reconnect=1 --think 0.5:2\n"
    "  vivarium bench --trace trace.csv --trace-speed 2 --records requests.jsonl\n"
    "  vivarium bench compare before.json after.json      exit code 6 where it got worse\n";

constexpr char kCompareFooter[] =
    "Both files are summaries of the same loads (--output FILE). A figure is worse where its "
    "whole\n"
    "95 % bootstrap interval lies beyond the threshold. Exit code 6: something is worse.\n";

absl::StatusOr<Json> ReadSummary(const std::string& path) {
  const auto contents = ReadInputFile(path);
  if (!contents.ok()) return contents.status();
  Json summary = Json::parse(*contents, nullptr, /*allow_exceptions=*/false);
  if (!summary.is_discarded()) return summary;
  return absl::InvalidArgumentError(path + " is not JSON; expected a summary of bench --output");
}

absl::Status WriteFile(const std::string& path, const std::string& contents) {
  auto file = OutputFile::Create(path);
  if (!file.ok()) return file.status();
  if (auto status = (*file)->Write(contents); !status.ok()) return status;
  return (*file)->Finish();
}

absl::Status PinTo(const std::vector<int>& cpus) {
  if (cpus.empty()) return absl::OkStatus();
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(static_cast<size_t>(cpu), &set);
  if (sched_setaffinity(0, sizeof(set), &set) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("--cpus: none of these cores is there for this process");
}

class BenchCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("bench", "Load-test a server");
    flags_.Declare(app);
    app->footer(kFooter);
    compare_app_ = app->add_subcommand("compare", "Whether a load test was worse than another one");
    compare_app_->add_option("BEFORE", before_, "Summary of the first")->required();
    compare_app_->add_option("AFTER", after_, "Summary of the second")->required();
    compare_app_->add_option("--threshold", threshold_, "Changes up to that share don't count")
        ->type_name("SHARE")
        ->check(CLI::Range(0.0, 10.0))
        ->capture_default_str();
    compare_json_.Declare(compare_app_, "the comparison");
    compare_app_->footer(kCompareFooter);
    return app;
  }

  int Run() override {
    if (compare_app_->parsed()) return RunCompare();
    auto plan = flags_.Resolve();
    if (!plan.ok()) return FailOf(plan.status());
    if (const auto status = PinTo(plan->cpus); !status.ok()) return FailOf(status);
    BlockInterrupts();
    auto client = bench::LoadClient::Connect(plan->client);
    if (!client.ok()) return Fail(kExitCannotConnect, std::string(client.status().message()));
    bench::LiveView view(!flags_.quiet);
    bench::RunnerOptions options{flags_.repeat, flags_.sweep};
    bench::Runner runner(*std::move(plan), options, client->get(), &view);
    std::optional<absl::Status> status;
    bool was_interrupted = false;
    {
      InterruptWatcher watcher([&runner] { runner.Stop(); }, kExitInterrupted);
      status = runner.Run();
      was_interrupted = watcher.fired();
    }
    view.Clear();
    if (!status->ok()) return Fail(kExitServerError, std::string(status->message()));
    if (const int code = Write(runner); code != kExitOk) return code;
    return was_interrupted ? kExitInterrupted : kExitOk;
  }

 private:
  static int FailOf(const absl::Status& status) {
    if (status.code() == absl::StatusCode::kInvalidArgument) {
      return Fail(kExitUsage, std::string(status.message()));
    }
    return FailLocally(status);
  }

  int RunCompare() {
    const auto before = ReadSummary(before_);
    if (!before.ok()) return FailOf(before.status());
    const auto after = ReadSummary(after_);
    if (!after.ok()) return FailOf(after.status());
    const auto comparison = bench::Compare(*before, *after, threshold_);
    if (!comparison.ok()) return FailOf(comparison.status());
    if (compare_json_.json) {
      PrintJson(*comparison);
    } else {
      PrintNow(bench::RenderComparison(*comparison));
    }
    return (*comparison)["worse"].get<bool>() ? kExitWorse : kExitOk;
  }

  int Write(const bench::Runner& runner) {
    const Json summary = runner.Summary();
    if (flags_.json.json) {
      PrintJson(summary);
    } else {
      PrintNow(bench::RenderLoads(runner.loads()));
    }
    absl::Status status;
    if (!flags_.json_file.empty())
      status.Update(WriteFile(flags_.json_file, summary.dump() + "\n"));
    if (!flags_.records_file.empty()) {
      status.Update(WriteFile(flags_.records_file, runner.RecordLines()));
    }
    if (!flags_.html_file.empty()) {
      status.Update(WriteFile(flags_.html_file, bench::RenderReport(summary)));
    }
    return status.ok() ? kExitOk : FailLocally(status);
  }

  BenchFlags flags_;
  CLI::App* compare_app_ = nullptr;
  std::string before_, after_;
  double threshold_ = 0.05;
  JsonFlag compare_json_;
};

}  // namespace

Commands MakeBenchCommands() {
  Commands commands;
  commands.push_back(std::make_unique<BenchCommand>());
  return commands;
}

}  // namespace vivarium::cli
