// The parts of summary.h that look at several loads.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/summary.h"

namespace vivarium::cli::bench {
namespace {

struct Figure {
  const char* name;
  const char* group;
  const char* first;
  const char* second;  // nullptr = none
};
constexpr Figure kFigures[] = {{"output_tok_s", "throughput", "output_tok_s", nullptr},
                               {"requests_s", "throughput", "requests_s", nullptr},
                               {"ttft_p50_ms", "latency_ms", "ttft", "p50"},
                               {"ttft_p99_ms", "latency_ms", "ttft", "p99"},
                               {"tpot_p50_ms", "latency_ms", "tpot", "p50"},
                               {"itl_p50_ms", "latency_ms", "itl", "p50"},
                               {"itl_p99_ms", "latency_ms", "itl", "p99"},
                               {"e2e_p50_ms", "latency_ms", "e2e", "p50"}};

double ValueOf(const Json& load, const Figure& figure) {
  const Json& value = load[figure.group][figure.first];
  return figure.second == nullptr ? value.get<double>() : value[figure.second].get<double>();
}

std::string LoadTitle(const Json& load) {
  const Json& what = load["load"];
  if (what["kind"] == "closed") return absl::StrCat(what["users"].get<int>(), " users");
  if (what["kind"] == "trace") return absl::StrFormat("trace x%g", what["speed"].get<double>());
  std::string title = absl::StrFormat("%g/s", what["rate"].get<double>());
  if (what["end_rate"].get<double>() > 0) {
    absl::StrAppendFormat(&title, " to %g/s", what["end_rate"].get<double>());
  }
  return title + " " + what["arrivals"].get<std::string>();
}

std::string Number(const Json& value) { return absl::StrFormat("%.4g", value.get<double>()); }

std::string RenderLatencies(const Json& load) {
  Table table({{"ms"},
               {"count", true},
               {"mean", true},
               {"p50", true},
               {"p90", true},
               {"p95", true},
               {"p99", true},
               {"p99.9", true},
               {"max", true}});
  const std::pair<const char*, const char*> rows[] = {{"ttft", "TTFT"},
                                                      {"tpot", "TPOT"},
                                                      {"itl", "ITL"},
                                                      {"e2e", "end to end"},
                                                      {"resume_ttft", "TTFT of resumes"},
                                                      {"reconnect_ttft", "TTFT of reconnections"},
                                                      {"client_queue", "queue in the client"},
                                                      {"server_queue", "queue in the server"}};
  for (const auto& [name, title] : rows) {
    const Json& figure = load["latency_ms"][name];
    if (figure["count"] == 0) continue;
    table.Add({title, FormatCount(figure["count"].get<uint64_t>()), Number(figure["mean"]),
               Number(figure["p50"]), Number(figure["p90"]), Number(figure["p95"]),
               Number(figure["p99"]), Number(figure["p99_9"]), Number(figure["max"])});
  }
  return table.Render();
}

std::string RenderLoad(const Json& load) {
  const Json& throughput = load["throughput"];
  const Json& requests = load["requests"];
  const Json& tokens = load["tokens"];
  std::string text =
      absl::StrFormat("%s, %.1f s measured: %d requests, %d ok, %d errors\n", LoadTitle(load),
                      load["window_s"].get<double>(), requests["counted"].get<uint64_t>(),
                      requests["ok"].get<uint64_t>(), requests["errors"].get<uint64_t>());
  absl::StrAppendFormat(&text, "output %.1f tok/s, prompts %.1f tok/s, %.2f requests/s\n",
                        throughput["output_tok_s"].get<double>(),
                        throughput["prefill_tok_s"].get<double>(),
                        throughput["requests_s"].get<double>());
  absl::StrAppendFormat(&text, "prompt tokens: %d restored, %d computed\n",
                        tokens["restored"].get<uint64_t>(), tokens["computed"].get<uint64_t>());
  if (const auto tiers = tokens.find("calls_restored_from"); tiers != tokens.end()) {
    absl::StrAppendFormat(
        &text, "states of calls: %d from the device, %d from host memory, %d from disk\n",
        (*tiers)["device"].get<uint64_t>(), (*tiers)["host"].get<uint64_t>(),
        (*tiers)["disk"].get<uint64_t>());
  }
  if (const Json& goodput = load["goodput"]; !goodput.is_null()) {
    absl::StrAppendFormat(&text, "goodput: %.2f requests/s, %.1f %% of the requests\n",
                          goodput["requests_s"].get<double>(),
                          goodput["share"].get<double>() * 100);
  }
  for (const auto& [code, error] : load["errors"].items()) {
    absl::StrAppend(&text, code, ": ", error["count"].get<uint64_t>(), ", such as '",
                    error["example"].get<std::string>(), "'\n");
  }
  text += RenderLatencies(load);
  for (const Json& warning : load["warnings"]) {
    absl::StrAppend(&text, "warning: ", warning.get<std::string>(), "\n");
  }
  return text;
}

}  // namespace

Json SpreadOf(const std::vector<Json>& loads) {
  Json spread = Json::object();
  for (const Figure& figure : kFigures) {
    double lowest = 1e300, highest = 0, sum = 0;
    for (const Json& load : loads) {
      const double value = ValueOf(load, figure);
      lowest = std::min(lowest, value);
      highest = std::max(highest, value);
      sum += value;
    }
    const double mean = sum / static_cast<double>(std::max<size_t>(loads.size(), 1));
    spread[figure.name] = {{"lowest", lowest},
                           {"highest", highest},
                           {"relative", mean > 0 ? (highest - lowest) / mean : 0.0}};
  }
  return spread;
}

std::string RenderLoads(const std::vector<Json>& loads) {
  std::string text;
  for (const Json& load : loads) absl::StrAppend(&text, text.empty() ? "" : "\n", RenderLoad(load));
  return text;
}

}  // namespace vivarium::cli::bench
