#include "cli/bench/runner.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace vivarium::cli::bench {
namespace {

constexpr int kPreparingUsers = 4;

int AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::string TitleOf(const LoadOptions& options) {
  switch (options.kind) {
    case LoadKind::kClosed:
      return absl::StrCat(options.users, " users");
    case LoadKind::kOpen:
      return absl::StrFormat("%g/s", options.arrivals.rate);
    case LoadKind::kTrace:
      break;
  }
  return "trace";
}

}  // namespace

Runner::Runner(Plan plan, RunnerOptions options, LoadClient* client, LiveView* view)
    : plan_(std::move(plan)), options_(options), client_(client), view_(view) {}

absl::Status Runner::Run() {
  auto facts = client_->GetServerFacts();
  if (!facts.ok()) return facts.status();
  server_ = *std::move(facts);
  started_at_ = absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone());
  plan_.workload.vocab_size = server_.vocab_size;
  plan_.workload.special_ids = server_.special_ids;
  plan_.workload.run_id = absl::StrFormat("%x", absl::ToUnixMicros(absl::Now()));
  for (TraceRow& row : plan_.trace) {
    const auto input = std::min<int64_t>(row.input_tokens, server_.max_prompt_tokens);
    const auto output = std::min<int64_t>(row.output_tokens, server_.max_tokens);
    num_clipped_rows_ += input != row.input_tokens || output != row.output_tokens ? 1 : 0;
    row.input_tokens = static_cast<int32_t>(input);
    row.output_tokens = static_cast<int32_t>(output);
  }
  std::vector<LoadOptions> loads = plan_.loads;
  for (size_t i = 0; i < loads.size(); ++i) {
    const size_t first = loads_.size();
    for (int repeat = 0; repeat < options_.repeat; ++repeat) {
      if (!RunLoad(loads[i])) return absl::OkStatus();
    }
    if (options_.repeat > 1) {
      repeats_.push_back(SpreadOf({loads_.begin() + static_cast<ptrdiff_t>(first), loads_.end()}));
    }
    const bool is_last = i + 1 == loads.size();
    if (options_.sweep && is_last && loads.size() < kMaxSweepLoads && !IsSaturated()) {
      LoadOptions next = loads[i];
      next.arrivals.rate = std::min(next.arrivals.rate * 2, kMaxRate);
      next.users = std::min(next.users * 2, kMaxUsers);
      loads.push_back(next);
    }
  }
  return absl::OkStatus();
}

bool Runner::IsSaturated() const {
  const Json& last = loads_.back();
  if (last["requests"]["errors"].get<uint64_t>() > 0) return true;
  if (last["load"]["kind"] != "closed") {
    return last["throughput"]["requests_s"].get<double>() <
           kSaturatedShare * last["throughput"]["offered_requests_s"].get<double>();
  }
  const auto repeat = static_cast<size_t>(options_.repeat);
  if (loads_.size() <= repeat) return false;
  const Json& before = loads_[loads_.size() - 1 - repeat];
  return last["throughput"]["output_tok_s"].get<double>() <
         kSaturatedGain * before["throughput"]["output_tok_s"].get<double>();
}

bool Runner::IsStopped() {
  absl::MutexLock lock(&mutex_);
  return is_stopped_;
}

void Runner::Stop() {
  absl::MutexLock lock(&mutex_);
  is_stopped_ = true;
  if (driver_ != nullptr) driver_->Stop();
}

// Reads what `resume` goes on from, a few at a time.
void Runner::Prepare(Workload* workload) {
  absl::Mutex mutex;
  absl::CondVar ended;
  std::vector<CallResult> results;
  int in_flight = 0;
  const auto start = Clock::now();
  std::vector<CallSpec> specs = workload->Preparation();
  for (size_t next = 0; next < specs.size() || in_flight > 0;) {
    if (next < specs.size() && in_flight < kPreparingUsers && !IsStopped()) {
      ++in_flight;
      client_->Start(std::move(specs[next]), next, start, start, [&](CallResult result) {
        absl::MutexLock lock(&mutex);
        results.push_back(std::move(result));
        ended.Signal();
      });
      ++next;
      continue;
    }
    if (IsStopped()) next = specs.size();
    absl::MutexLock lock(&mutex);
    while (results.empty() && in_flight > 0) ended.Wait(&mutex);
    for (const CallResult& result : results) workload->Prepared(result);
    in_flight -= static_cast<int>(results.size());
    results.clear();
  }
}

bool Runner::RunLoad(const LoadOptions& options) {
  // Each load with requests of its own, so that none profits from another one's states.
  WorkloadOptions workload_options = plan_.workload;
  workload_options.seed += loads_.size() * 1'000'003;
  absl::StrAppend(&workload_options.run_id, "-", loads_.size());
  Workload workload(workload_options, plan_.prompts, plan_.trace);
  view_->Begin(TitleOf(options));
  Prepare(&workload);
  Driver driver(options, client_, &workload,
                [this](const LoadProgress& progress) { view_->Show(progress); });
  {
    absl::MutexLock lock(&mutex_);
    if (is_stopped_) return false;
    driver_ = &driver;
  }
  const LoadResult result = driver.Run();
  {
    absl::MutexLock lock(&mutex_);
    driver_ = nullptr;
  }
  for (const std::string& session : workload.sessions()) client_->DeleteSession(session);
  for (const CallRecord& record : result.records) {
    Json json = RecordJson(record);
    json["load"] = loads_.size();
    absl::StrAppend(&record_lines_, json.dump(-1, ' ', false, Json::error_handler_t::replace),
                    "\n");
  }
  loads_.push_back(SummarizeLoad(options, result, plan_.slo, AvailableCpus()));
  if (num_clipped_rows_ > 0) {
    loads_.back()["warnings"].push_back(absl::StrCat(
        num_clipped_rows_, " rows of the trace were longer than the server allows (",
        server_.max_prompt_tokens, " in, ", server_.max_tokens, " out) and were shortened"));
  }
  return !result.was_stopped;
}

Json Runner::Summary() const {
  Json summary = {{"schema", kSummarySchema},
                  {"started_at", started_at_},
                  {"server",
                   {{"address", plan_.client.server},
                    {"model", server_.name},
                    {"fingerprint", server_.fingerprint},
                    {"numerics_id", server_.numerics_id},
                    {"version", server_.version},
                    {"device", server_.device},
                    {"isa", server_.isa},
                    {"max_slots", server_.max_slots}}},
                  {"seed", plan_.workload.seed},
                  {"connections", plan_.client.num_connections}};
  Json mix = Json::object();
  for (const auto& [scenario, share] : plan_.workload.mix) mix[ScenarioName(scenario)] = share;
  const auto range = [](const TokenRange& tokens) { return Json{tokens.min, tokens.max}; };
  summary["workload"] = {{"mix", mix},
                         {"input_tokens", range(plan_.workload.input)},
                         {"output_tokens", range(plan_.workload.output)},
                         {"long_tokens", range(plan_.workload.long_input)},
                         {"context_tokens", range(plan_.workload.context)},
                         {"cancel_rate", plan_.workload.cancel_rate},
                         {"slow_rate", plan_.workload.slow_reader_rate}};
  summary["loads"] = loads_;
  summary["repeat"] = options_.repeat;
  summary["aa_spread"] = repeats_;
  return summary;
}

}  // namespace vivarium::cli::bench
