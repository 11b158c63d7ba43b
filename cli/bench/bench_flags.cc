#include "cli/bench/bench_flags.h"

#include <CLI/Validators.hpp>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/output_file.h"
#include "cli/token_ids.h"

namespace vivarium::cli::bench {
namespace {

constexpr double kDefaultSeconds = 30;
constexpr double kMaxSeconds = 86'400;
constexpr int kDefaultUsers = 8;

absl::StatusOr<std::vector<double>> ParseNumbers(const std::string& flag, const std::string& text,
                                                 double least, double most) {
  std::vector<double> numbers;
  const std::vector<std::string> words = absl::StrSplit(text, ',');
  for (const std::string& word : words) {
    double number = 0;
    if (!absl::SimpleAtod(word, &number) || !(number >= least && number <= most)) {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, ": '", word, "' is not a number in ", least, " .. ", most));
    }
    numbers.push_back(number);
  }
  return numbers;
}

absl::Status About(const char* flag, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(flag, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseCpus(const std::string& text) {
  std::vector<int> cpus;
  const std::vector<std::string> words = absl::StrSplit(text, ',');
  for (const std::string& word : words) {
    const size_t dash = word.find('-');
    int first = 0, last = 0;
    bool is_good = absl::SimpleAtoi(word.substr(0, dash), &first);
    last = first;
    if (dash != std::string::npos) is_good &= absl::SimpleAtoi(word.substr(dash + 1), &last);
    if (!is_good || first < 0 || last < first || last >= kMaxCpus) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", word, "' is not N or FIRST-LAST in 0 .. ", kMaxCpus - 1));
    }
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

void BenchFlags::Declare(CLI::App* app) {
  DeclareLoad(app);
  DeclareRequests(app);
  DeclareOutput(app);
  connection.Declare(app);
}

void BenchFlags::DeclareLoad(CLI::App* app) {
  const auto add = [app](const std::string& name, auto& value, const std::string& what,
                         const std::string& type) {
    return app->add_option(name, value, what)->type_name(type)->group("Load");
  };
  auto* users_option = add("--users", users,
                           "Closed loop: so many users, each waits for its answer; "
                           "several, with commas: one load each; default: 8",
                           "N,...");
  auto* rate_option = add("--rate", rates, "Open loop: requests per second, come what may", "R,...")
                          ->excludes(users_option);
  add("--trace", trace, "Open loop: a trace, Azure 2023 CSV or Mooncake JSON lines", "FILE")
      ->excludes(users_option)
      ->excludes(rate_option);
  add("--duration", duration, "Send for that long; default: 30, with --requests: no bound",
      "SECONDS")
      ->check(CLI::Range(0.01, kMaxSeconds));
  add("--requests", requests, "Send that many, then wait for their ends", "N")
      ->check(CLI::Range(uint64_t{1}, kMaxRecords));
  add("--warmup", warmup, "At the start; not in the figures", "SECONDS")
      ->check(CLI::Range(0.0, kMaxSeconds));
  add("--grace", grace, "For what is in flight when sending ends", "SECONDS")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  add("--stagger", stagger, "Closed loop: spread the users' starts over it", "SECONDS")
      ->check(CLI::Range(0.0, kMaxSeconds));
  add("--think", think, "Closed loop: between answer and next request; MIN:MAX = uniform",
      "SECONDS");
  add("--arrivals", arrivals, "Open loop: constant, poisson or gamma", "KIND")
      ->check(CLI::IsMember({"constant", "poisson", "gamma"}))
      ->capture_default_str();
  add("--burstiness", burstiness, "Of gamma arrivals: below 1 = burstier than Poisson", "X")
      ->check(CLI::Range(0.01, 1000.0));
  add("--ramp-to", ramp_to, "Open loop: change the rate evenly to R over --duration", "R")
      ->check(CLI::Range(0.001, kMaxRate));
  app->add_flag("--sweep", sweep,
                "Double the rate (or users) from the first one on until the server is saturated")
      ->group("Load");
  add("--trace-speed", trace_speed, "Play a trace so many times as fast", "X")
      ->check(CLI::Range(0.001, 1000.0));
  add("--repeat", repeat, "Run each load so often and state the spread (A/A)", "N")
      ->check(CLI::Range(1, kMaxLoads));
  add("--connections", connections, "To the server", "N")
      ->check(CLI::Range(1, kMaxConnections))
      ->capture_default_str();
  add("--max-in-flight", max_in_flight, "More wait in the client, and that counts as latency", "N")
      ->check(CLI::Range(1, kMaxUsers))
      ->capture_default_str();
  add("--cpus", cpus, "Keep the client on these cores, such as 0-1,3", "LIST");
}

void BenchFlags::DeclareRequests(CLI::App* app) {
  const auto add = [app](const std::string& name, auto& value, const std::string& what,
                         const std::string& type) {
    return app->add_option(name, value, what)->type_name(type)->group("Requests");
  };
  add("--mix", mix,
      "Shares of fresh, long, resume, fork, thread, reconnect, such as fresh=0.9,long=0.1",
      "NAME=SHARE,...")
      ->capture_default_str();
  add("--input-tokens", input, "Of a prompt; MIN:MAX = uniform", "N")->capture_default_str();
  add("--output-tokens", output, "To generate", "N")->capture_default_str();
  add("--long-tokens", long_input, "Of a prompt of the `long` share", "N")->capture_default_str();
  add("--context-tokens", context, "Read beforehand: what `resume` and `fork` go on from", "N")
      ->capture_default_str();
  add("--prompts", prompts, "Prompts, one a line, or JSON lines with \"prompt\" or \"turns\"",
      "FILE");
  add("--fork-children", fork_children, "Streams that go on from one state at once", "N")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  add("--threads", threads, "Sessions of `thread` that take turns to come back", "N")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  add("--states", states, "That `resume` chooses from", "N")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  add("--cancel-rate", cancel_rate, "Share of requests cancelled half-way", "SHARE")
      ->check(CLI::Range(0.0, 1.0));
  add("--slow-rate", slow_rate, "Share of slow readers; they are in no latency figure", "SHARE")
      ->check(CLI::Range(0.0, 1.0));
  add("--slow-read-ms", slow_read_ms, "Between two reads of a slow reader", "MS")
      ->check(CLI::Range(1.0, 60'000.0))
      ->capture_default_str();
  add("--temperature", temperature, "0 = always the likeliest token", "T")->capture_default_str();
  add("--seed", seed, "Of lengths, tokens, arrivals and sampling", "N")->capture_default_str();
  app->add_flag("--stop-at-eos", stop_at_eos, "Outputs may end early; default: exact lengths")
      ->group("Requests");
  app->add_flag("--same-prompts", same_prompts, "Every request the same")->group("Requests");
}

void BenchFlags::DeclareOutput(CLI::App* app) {
  const auto add = [app](const std::string& name, auto& value, const std::string& what,
                         const std::string& type) {
    return app->add_option(name, value, what)->type_name(type)->group("Results");
  };
  json.Declare(app, "the summary");
  add("--output", json_file, "Write the JSON summary there", "FILE");
  add("--records", records_file, "Write one JSON line per request there", "FILE");
  add("--html", html_file, "Write a report with charts there", "FILE");
  add("--slo", slo, "Bounds for goodput in ms, such as ttft=500,tpot=50,e2e=10000,itl=200",
      "NAME=MS,...");
  app->add_flag("-q,--quiet", quiet, "No progress")->group("Results");
}

absl::Status BenchFlags::ResolveWorkload(Plan* plan) const {
  WorkloadOptions& workload = plan->workload;
  auto parsed_mix = ParseMix(mix);
  if (!parsed_mix.ok()) return About("--mix", parsed_mix.status());
  workload.mix = *std::move(parsed_mix);
  struct Range {
    const char* flag;
    const std::string& text;
    int32_t least;
    TokenRange* to;
  };
  for (const Range& range : {Range{"--input-tokens", input, 1, &workload.input},
                             Range{"--output-tokens", output, 1, &workload.output},
                             Range{"--long-tokens", long_input, 1, &workload.long_input},
                             Range{"--context-tokens", context, 1, &workload.context}}) {
    const auto parsed = ParseTokenRange(range.text, range.least);
    if (!parsed.ok()) return About(range.flag, parsed.status());
    *range.to = *parsed;
  }
  workload.fork_children = fork_children;
  workload.num_threads = threads;
  workload.num_states = states;
  workload.cancel_rate = cancel_rate;
  workload.slow_reader_rate = slow_rate;
  workload.slow_read_seconds = slow_read_ms / 1000;
  workload.temperature = static_cast<float>(temperature);
  workload.ignore_eos = !stop_at_eos;
  workload.same_prompts = same_prompts;
  workload.seed = seed;
  if (!prompts.empty()) {
    auto contents = ReadInputFile(prompts);
    if (!contents.ok()) return contents.status();
    auto parsed = ParsePrompts(*contents, prompts);
    if (!parsed.ok()) return parsed.status();
    plan->prompts = *std::move(parsed);
  }
  if (!trace.empty()) {
    auto contents = ReadInputFile(trace);
    if (!contents.ok()) return contents.status();
    auto parsed = ParseTrace(*contents, trace);
    if (!parsed.ok()) return parsed.status();
    plan->trace = *std::move(parsed);
  }
  return absl::OkStatus();
}

absl::Status BenchFlags::ResolveLoads(Plan* plan) const {
  LoadOptions load;
  load.duration_seconds =
      duration > 0 ? duration : (requests > 0 || !trace.empty() ? 0 : kDefaultSeconds);
  load.requests = requests;
  load.warmup_seconds = warmup;
  load.grace_seconds = grace;
  load.stagger_seconds = stagger;
  load.max_in_flight = max_in_flight;
  load.seed = seed;
  load.trace_speed = trace_speed;
  const auto thinks = absl::StrSplit(think, ':');
  const std::vector<std::string> bounds(thinks.begin(), thinks.end());
  for (const std::string& bound : bounds) {
    const auto seconds = ParseNumbers("--think", bound, 0, kMaxSeconds);
    if (!seconds.ok() || bounds.size() > 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("--think: '", think, "' is not SECONDS or MIN:MAX"));
    }
    (&bound == &bounds.front() ? load.think_min_seconds : load.think_max_seconds) =
        seconds->front();
  }
  if (load.duration_seconds > 0 && warmup >= load.duration_seconds) {
    return absl::InvalidArgumentError(
        absl::StrCat("--warmup ", warmup, " must be below --duration ", load.duration_seconds));
  }
  if (ramp_to > 0 && (rates.empty() || load.duration_seconds <= 0)) {
    return absl::InvalidArgumentError("--ramp-to needs --rate and --duration");
  }
  if (sweep && !trace.empty()) return absl::InvalidArgumentError("--sweep needs --rate or --users");
  load.arrivals.kind = arrivals == "constant"  ? ArrivalKind::kConstant
                       : arrivals == "poisson" ? ArrivalKind::kPoisson
                                               : ArrivalKind::kGamma;
  load.arrivals.burstiness = burstiness;
  load.arrivals.end_rate = ramp_to;
  load.arrivals.ramp_seconds = load.duration_seconds;
  load.arrivals.seed = seed;
  const bool is_open = !rates.empty();
  load.kind = !trace.empty() ? LoadKind::kTrace : is_open ? LoadKind::kOpen : LoadKind::kClosed;
  const std::string text = is_open ? rates : users.empty() ? absl::StrCat(kDefaultUsers) : users;
  const auto values = is_open ? ParseNumbers("--rate", text, 0.001, kMaxRate)
                              : ParseNumbers("--users", text, 1, kMaxUsers);
  if (!values.ok()) return values.status();
  if (values->size() * static_cast<size_t>(repeat) > kMaxLoads) {
    return absl::InvalidArgumentError(absl::StrCat("that makes ",
                                                   values->size() * static_cast<size_t>(repeat),
                                                   " loads; at most ", kMaxLoads));
  }
  for (const double value : *values) {
    if (!is_open && value != std::floor(value)) {
      return absl::InvalidArgumentError(absl::StrCat("--users: '", value, "' is not whole"));
    }
    load.users = static_cast<int>(is_open ? 1 : value);
    load.arrivals.rate = is_open ? value : 1;
    plan->loads.push_back(load);
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> BenchFlags::Resolve() const {
  Plan plan;
  if (const auto status = ResolveWorkload(&plan); !status.ok()) return status;
  if (const auto status = ResolveLoads(&plan); !status.ok()) return status;
  if (!slo.empty()) {
    const auto parsed = ParseSlo(slo);
    if (!parsed.ok()) return About("--slo", parsed.status());
    plan.slo = *parsed;
  }
  if (!cpus.empty()) {
    auto parsed = ParseCpus(cpus);
    if (!parsed.ok()) return About("--cpus", parsed.status());
    plan.cpus = *std::move(parsed);
  }
  plan.client.server = connection.server;
  plan.client.num_connections = connections;
  plan.client.call_timeout_seconds = connection.timeout_seconds;
  return plan;
}

}  // namespace vivarium::cli::bench
