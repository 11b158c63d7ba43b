#include "cli/bench/summary.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/bench/warnings.h"
#include "cli/status_code.h"

namespace vivarium::cli::bench {
namespace {

constexpr int kCancelledCode = 1;  // gRPC's
constexpr int kCdfPoints = 100;

double Ms(double seconds) { return std::round(seconds * 1e6) / 1e3; }
double Rounded(double value) { return std::round(value * 1e4) / 1e4; }

// A call whose end says something about the server.
bool IsCounted(const CallRecord& record, const LoadResult& result) {
  const bool is_in_window =
      record.scheduled_s >= result.window_start_s && record.scheduled_s < result.window_end_s;
  return is_in_window && !(result.was_stopped && !record.was_cut && record.code == kCancelledCode);
}

struct Samples {
  std::vector<double> ttft, tpot, e2e, resume, reconnect, client_queue, server_queue;
};

Samples CollectSamples(const std::vector<const CallRecord*>& records) {
  Samples samples;
  for (const CallRecord* record : records) {
    samples.client_queue.push_back(record->sent_s - record->scheduled_s);
    if (!record->ok() || record->is_slow_reader) continue;
    samples.server_queue.push_back(record->server_queue_s);
    if (record->output_tokens > 0) {
      samples.ttft.push_back(record->ttft_s());
      if (record->restored_tokens > 0) samples.resume.push_back(record->ttft_s());
      if (record->scenario == Scenario::kReconnected) samples.reconnect.push_back(record->ttft_s());
    }
    if (record->was_cut || record->scenario == Scenario::kForkParent) continue;
    samples.e2e.push_back(record->e2e_s());
    if (record->tpot_s() >= 0) samples.tpot.push_back(record->tpot_s());
  }
  return samples;
}

Json CdfJson(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  Json values = Json::array();
  for (int i = 0; i <= kCdfPoints && !seconds.empty(); ++i) {
    values.push_back(Ms(QuantileOfSorted(seconds, static_cast<double>(i) / kCdfPoints)));
  }
  return values;
}

Json CdfJson(const Histogram& histogram) {
  Json values = Json::array();
  for (int i = 0; i <= kCdfPoints && histogram.count() > 0; ++i) {
    values.push_back(Ms(histogram.Quantile(static_cast<double>(i) / kCdfPoints) / 1e9));
  }
  return values;
}

// At most kMaxSamples of them, evenly over the run.
Json SampleJson(const std::vector<double>& seconds) {
  Json values = Json::array();
  const size_t kept = std::min(seconds.size(), kMaxSamples);
  for (size_t i = 0; i < kept; ++i) values.push_back(Ms(seconds[i * seconds.size() / kept]));
  return values;
}

Json RequestsJson(const std::vector<const CallRecord*>& records, const LoadResult& result) {
  uint64_t ok = 0, errors = 0, cut = 0, slow = 0;
  for (const CallRecord* record : records) {
    (record->ok() ? ok : errors) += 1;
    cut += record->was_cut ? 1 : 0;
    slow += record->is_slow_reader ? 1 : 0;
  }
  return {{"counted", records.size()},
          {"ok", ok},
          {"errors", errors},
          {"cut_on_purpose", cut},
          {"slow_readers", slow},
          {"dropped_unsent", result.dropped},
          {"reconnect_retries", result.retries},
          {"outside_window", result.records.size() - records.size()}};
}

Json ErrorsJson(const std::vector<const CallRecord*>& records) {
  std::map<std::string, std::vector<double>> latencies;  // by code: until the refusal came
  std::map<std::string, std::string> examples;
  for (const CallRecord* record : records) {
    if (record->ok()) continue;
    const std::string code = CodeName(record->code);
    latencies[code].push_back(record->e2e_s());
    if (examples.size() < kMaxErrorExamples) examples.emplace(code, record->error);
  }
  Json errors = Json::object();
  for (auto& [code, seconds] : latencies) {
    errors[code] = {{"count", seconds.size()}, {"example", examples[code]}};
    errors[code]["latency_ms"] = LatencyJson(std::move(seconds));
  }
  return errors;
}

Json TokensJson(const std::vector<const CallRecord*>& records) {
  uint64_t input = 0, output = 0, restored = 0, computed = 0, deltas = 0;
  std::map<std::string, uint64_t> calls;
  for (const CallRecord* record : records) {
    ++calls[record->state_tier];
    input += record->input_tokens;
    output += record->output_tokens;
    restored += record->restored_tokens;
    computed += record->prefill_tokens;
    deltas += record->num_deltas;
  }
  const double prompt = static_cast<double>(restored + computed);
  return {{"input", input},
          {"output", output},
          {"restored", restored},
          {"calls_restored_from",
           {{"device", calls["device"]}, {"host", calls["host"]}, {"disk", calls["disk"]}}},
          {"computed", computed},
          {"restored_share", prompt > 0 ? Rounded(static_cast<double>(restored) / prompt) : 0.0},
          {"per_delta",
           deltas > 0 ? Rounded(static_cast<double>(output) / static_cast<double>(deltas)) : 0.0}};
}

Json ThroughputJson(const std::vector<const CallRecord*>& records, const LoadResult& result) {
  const double window = std::max(result.window_end_s - result.window_start_s, 1e-9);
  uint64_t input = 0, done = 0;
  for (const CallRecord& record : result.records) {
    if (record.ok() && record.end_s >= result.window_start_s &&
        record.end_s < result.window_end_s + 1e-9) {
      ++done;
    }
    if (record.first_token_s >= result.window_start_s &&
        record.first_token_s < result.window_end_s) {
      input += record.prefill_tokens;
    }
  }
  const double output = static_cast<double>(result.window_output_tokens);
  return {{"output_tok_s", Rounded(output / window)},
          {"prefill_tok_s", Rounded(static_cast<double>(input) / window)},
          {"total_tok_s", Rounded((output + static_cast<double>(input)) / window)},
          {"requests_s", Rounded(static_cast<double>(done) / window)},
          {"offered_requests_s", Rounded(static_cast<double>(records.size()) / window)}};
}

Json GoodputJson(const std::vector<const CallRecord*>& records, const LoadResult& result,
                 const Slo& slo) {
  uint64_t judged = 0, good = 0;
  for (const CallRecord* record : records) {
    if (record->is_slow_reader || record->was_cut || record->scenario == Scenario::kForkParent) {
      continue;
    }
    ++judged;
    good += slo.IsMetBy(*record) ? 1 : 0;
  }
  const double window = std::max(result.window_end_s - result.window_start_s, 1e-9);
  return {{"slo_ms",
           {{"ttft", slo.ttft_ms},
            {"tpot", slo.tpot_ms},
            {"e2e", slo.e2e_ms},
            {"itl", slo.max_itl_ms}}},
          {"requests_s", Rounded(static_cast<double>(good) / window)},
          {"share",
           judged > 0 ? Rounded(static_cast<double>(good) / static_cast<double>(judged)) : 0.0}};
}

// Output tokens and time to first token along the run, at most kMaxTimelinePoints.
Json TimelineJson(const LoadResult& result) {
  const size_t seconds = result.tokens_per_second.size();
  const size_t step = std::max<size_t>(1, (seconds + kMaxTimelinePoints - 1) / kMaxTimelinePoints);
  const size_t num_points = (seconds + step - 1) / step;
  std::vector<std::vector<double>> ttft(num_points);
  for (const CallRecord& record : result.records) {
    const size_t point = static_cast<size_t>(std::max(record.scheduled_s, 0.0)) / step;
    if (record.output_tokens > 0 && !record.is_slow_reader && point < num_points) {
      ttft[point].push_back(record.ttft_s());
    }
  }
  Json tokens = Json::array(), p50 = Json::array(), p99 = Json::array();
  for (size_t point = 0; point < num_points; ++point) {
    double sum = 0;
    for (size_t i = point * step; i < std::min(seconds, (point + 1) * step); ++i) {
      sum += result.tokens_per_second[i];
    }
    tokens.push_back(Rounded(sum / static_cast<double>(step)));
    std::sort(ttft[point].begin(), ttft[point].end());
    const bool is_empty = ttft[point].empty();
    p50.push_back(is_empty ? Json(nullptr) : Json(Ms(QuantileOfSorted(ttft[point], 0.5))));
    p99.push_back(is_empty ? Json(nullptr) : Json(Ms(QuantileOfSorted(ttft[point], 0.99))));
  }
  return {{"seconds_per_point", step},
          {"output_tok_s", tokens},
          {"ttft_p50_ms", p50},
          {"ttft_p99_ms", p99}};
}

Json ScenariosJson(const std::vector<const CallRecord*>& records) {
  std::map<Scenario, std::vector<const CallRecord*>> groups;
  for (const CallRecord* record : records) groups[record->scenario].push_back(record);
  Json scenarios = Json::object();
  for (const auto& [scenario, group] : groups) {
    const Samples samples = CollectSamples(group);
    scenarios[ScenarioName(scenario)] = {{"requests", group.size()},
                                         {"ttft_ms", LatencyJson(samples.ttft)},
                                         {"e2e_ms", LatencyJson(samples.e2e)}};
  }
  return scenarios;
}

Json LoadJson(const LoadOptions& options) {
  switch (options.kind) {
    case LoadKind::kClosed:
      return {{"kind", "closed"}, {"users", options.users}};
    case LoadKind::kTrace:
      return {{"kind", "trace"}, {"speed", options.trace_speed}};
    case LoadKind::kOpen:
      break;
  }
  constexpr const char* kNames[] = {"constant", "poisson", "gamma"};
  return {{"kind", "open"},
          {"arrivals", kNames[static_cast<int>(options.arrivals.kind)]},
          {"rate", options.arrivals.rate},
          {"end_rate", options.arrivals.end_rate},
          {"burstiness", options.arrivals.burstiness}};
}

}  // namespace

bool Slo::IsMetBy(const CallRecord& record) const {
  const auto within = [](double seconds, double bound_ms) {
    return bound_ms <= 0 || seconds * 1000 <= bound_ms;
  };
  return record.ok() && within(record.output_tokens > 0 ? record.ttft_s() : 1e9, ttft_ms) &&
         within(record.tpot_s(), tpot_ms) && within(record.e2e_s(), e2e_ms) &&
         within(record.max_gap_s, max_itl_ms);
}

absl::StatusOr<Slo> ParseSlo(const std::string& text) {
  Slo slo;
  const std::map<std::string, double*> fields = {{"ttft", &slo.ttft_ms},
                                                 {"tpot", &slo.tpot_ms},
                                                 {"e2e", &slo.e2e_ms},
                                                 {"itl", &slo.max_itl_ms}};
  const std::vector<std::string> words = absl::StrSplit(text, ',');
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    const auto field = fields.find(word.substr(0, equals));
    double value = 0;
    if (equals == std::string::npos || field == fields.end() ||
        !absl::SimpleAtod(word.substr(equals + 1), &value) || !std::isfinite(value) || value <= 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", word, "' is not NAME=MS with MS > 0 and NAME one of: ttft, tpot, e2e, itl"));
    }
    *field->second = value;
  }
  return slo;
}

Json LatencyJson(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  double sum = 0;
  for (const double value : seconds) sum += value;
  const auto at = [&seconds](double q) { return Ms(QuantileOfSorted(seconds, q)); };
  return {{"count", seconds.size()},
          {"mean", seconds.empty() ? 0.0 : Ms(sum / static_cast<double>(seconds.size()))},
          {"p50", at(0.5)},
          {"p90", at(0.9)},
          {"p95", at(0.95)},
          {"p99", at(0.99)},
          {"p99_9", at(0.999)},
          {"max", at(1)}};
}

Json LatencyJson(const Histogram& histogram) {
  const auto at = [&histogram](double q) { return Ms(histogram.Quantile(q) / 1e9); };
  return {{"count", histogram.count()},
          {"mean", Ms(histogram.mean() / 1e9)},
          {"p50", at(0.5)},
          {"p90", at(0.9)},
          {"p95", at(0.95)},
          {"p99", at(0.99)},
          {"p99_9", at(0.999)},
          {"max", Ms(static_cast<double>(histogram.max()) / 1e9)}};
}

Json SummarizeLoad(const LoadOptions& options, const LoadResult& result, const Slo& slo,
                   int num_cpus) {
  std::vector<const CallRecord*> records;
  for (const CallRecord& record : result.records) {
    if (IsCounted(record, result)) records.push_back(&record);
  }
  const Samples samples = CollectSamples(records);
  Json load = {{"load", LoadJson(options)},
               {"wall_s", Rounded(result.wall_s)},
               {"window_s", Rounded(result.window_end_s - result.window_start_s)},
               {"was_stopped", result.was_stopped},
               {"requests", RequestsJson(records, result)},
               {"errors", ErrorsJson(records)}};
  load["latency_ms"] = {{"ttft", LatencyJson(samples.ttft)},
                        {"tpot", LatencyJson(samples.tpot)},
                        {"itl", LatencyJson(result.itl)},
                        {"e2e", LatencyJson(samples.e2e)},
                        {"resume_ttft", LatencyJson(samples.resume)},
                        {"reconnect_ttft", LatencyJson(samples.reconnect)},
                        {"client_queue", LatencyJson(samples.client_queue)},
                        {"server_queue", LatencyJson(samples.server_queue)}};
  load["throughput"] = ThroughputJson(records, result);
  load["tokens"] = TokensJson(records);
  load["goodput"] = slo.IsGiven() ? GoodputJson(records, result, slo) : Json(nullptr);
  load["by_scenario"] = ScenariosJson(records);
  load["client"] = {{"cpu_cores", Rounded(result.client_cpu_s / std::max(result.wall_s, 1e-9))},
                    {"available_cores", num_cpus}};
  load["cdf_ms"] = {{"ttft", CdfJson(samples.ttft)},
                    {"tpot", CdfJson(samples.tpot)},
                    {"itl", CdfJson(result.itl)},
                    {"e2e", CdfJson(samples.e2e)}};
  load["timeline"] = TimelineJson(result);
  load["samples_ms"] = {{"ttft", SampleJson(samples.ttft)},
                        {"tpot", SampleJson(samples.tpot)},
                        {"e2e", SampleJson(samples.e2e)}};
  load["warnings"] = WarningsOf(load, result.hit_record_bound);
  return load;
}

Json RecordJson(const CallRecord& record) {
  const bool has_tokens = record.output_tokens > 0;
  return {{"index", record.index},
          {"scenario", ScenarioName(record.scenario)},
          {"scheduled_s", record.scheduled_s},
          {"sent_s", record.sent_s},
          {"end_s", record.end_s},
          {"ttft_ms", has_tokens ? Json(Ms(record.ttft_s())) : Json(nullptr)},
          {"tpot_ms", record.tpot_s() < 0 ? Json(nullptr) : Json(Ms(record.tpot_s()))},
          {"e2e_ms", Ms(record.e2e_s())},
          {"max_itl_ms", Ms(record.max_gap_s)},
          {"server_queue_ms", Ms(record.server_queue_s)},
          {"input_tokens", record.input_tokens},
          {"output_tokens", record.output_tokens},
          {"deltas", record.num_deltas},
          {"restored_tokens", record.restored_tokens},
          {"state_tier", record.state_tier},
          {"computed_tokens", record.prefill_tokens},
          {"cut", record.was_cut},
          {"slow_reader", record.is_slow_reader},
          {"code", CodeName(record.was_cut ? 0 : record.code)},
          {"error", record.was_cut ? "" : record.error}};
}

}  // namespace vivarium::cli::bench
