#include "cli/bench/report.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/bench/chart.h"
#include "cli/bench/summary.h"

namespace vivarium::cli::bench {
namespace {

constexpr char kHead[] =
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
    "style-src 'unsafe-inline'\">"
    "<title>Vivarium load test</title><style>"
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;"
    "color:#1f2328;background:#fff}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}"
    "figure{margin:0;border:1px solid #d1d9e0;border-radius:6px;padding:.5rem}"
    "figcaption{font-weight:600}svg{width:100%;height:auto}"
    "svg text{font-size:11px;fill:#59636e}.grid{stroke:#e5e9ed}"
    "pre{overflow-x:auto;background:#f6f8fa;padding:1rem;border-radius:6px}"
    ".warning{background:#fff8c5;border-left:4px solid #d4a72c;padding:.3rem .8rem;margin:.4rem 0}"
    "</style></head><body>\n";

std::string NameOf(const Json& load) {
  const Json& what = load["load"];
  if (what["kind"] == "closed") return absl::StrCat(what["users"].get<int>(), " users");
  if (what["kind"] == "trace") return "trace";
  return absl::StrCat(what["rate"].get<double>(), "/s");
}

double Number(const Json& value) { return value.is_number() ? value.get<double>() : NAN; }

Series Line(const std::string& name, const Json& values, double step) {
  Series series{name, {}};
  for (size_t i = 0; i < values.size(); ++i) {
    series.points.emplace_back(static_cast<double>(i) * step, Number(values[i]));
  }
  return series;
}

// Latency over throughput: the knee is where the curve turns up.
Chart KneeChart(const Json& loads) {
  Chart chart{
      "Latency over throughput", "output tok/s", "ms", {{"TTFT p50", {}}, {"TTFT p99", {}}}, true};
  for (const Json& load : loads) {
    const double tokens = load["throughput"]["output_tok_s"];
    const Json& ttft = load["latency_ms"]["ttft"];
    chart.series[0].points.emplace_back(tokens, Number(ttft["p50"]));
    chart.series[1].points.emplace_back(tokens, Number(ttft["p99"]));
  }
  return chart;
}

Chart GoodputChart(const Json& loads) {
  Chart chart{"Goodput over offered load",
              "offered requests/s",
              "requests/s",
              {{"answered", {}}, {"within SLO", {}}},
              true};
  for (const Json& load : loads) {
    const double offered = load["throughput"]["offered_requests_s"];
    chart.series[0].points.emplace_back(offered, Number(load["throughput"]["requests_s"]));
    if (load["goodput"].is_object()) {
      chart.series[1].points.emplace_back(offered, Number(load["goodput"]["requests_s"]));
    }
  }
  return chart;
}

Chart CdfChart(const Json& load) {
  Chart chart{NameOf(load) + ": share of requests (ITL: of waits) below", "ms", "%", {}, false};
  for (const auto& [name, title] :
       {std::pair{"ttft", "TTFT"}, std::pair{"itl", "ITL"}, std::pair{"tpot", "TPOT"}}) {
    Series series{title, {}};
    const Json& values = load["cdf_ms"][name];
    for (size_t i = 0; i < values.size(); ++i) {
      series.points.emplace_back(Number(values[i]), static_cast<double>(i));
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

void AppendLoad(const Json& load, std::string* html) {
  const std::string name = NameOf(load);
  const Json& timeline = load["timeline"];
  const double step = timeline["seconds_per_point"];
  absl::StrAppend(html, "<h2>", EscapeHtml(name), "</h2>\n<div class=\"charts\">\n");
  absl::StrAppend(html, RenderChart({name + ": TTFT over time",
                                     "s since the start",
                                     "ms",
                                     {Line("p50", timeline["ttft_p50_ms"], step),
                                      Line("p99", timeline["ttft_p99_ms"], step)},
                                     false}));
  absl::StrAppend(html, RenderChart({name + ": output over time",
                                     "s since the start",
                                     "tok/s",
                                     {Line("output", timeline["output_tok_s"], step)},
                                     false}));
  Chart cdf = CdfChart(load);
  absl::StrAppend(html, RenderChart(cdf));
  Series e2e{"end to end", {}};
  const Json& values = load["cdf_ms"]["e2e"];
  for (size_t i = 0; i < values.size(); ++i) {
    e2e.points.emplace_back(Number(values[i]), static_cast<double>(i));
  }
  absl::StrAppend(
      html, RenderChart({name + ": share of requests that ended within", "ms", "%", {e2e}, false}));
  absl::StrAppend(html, "</div>\n<pre>", EscapeHtml(RenderLoads({load})), "</pre>\n");
}

}  // namespace

std::string RenderReport(const Json& summary) {
  const Json& server = summary["server"];
  std::string html = kHead;
  absl::StrAppend(&html, "<h1>Vivarium load test</h1>\n<p>",
                  EscapeHtml(server["model"].get<std::string>()), " on ",
                  EscapeHtml(server["numerics_id"].get<std::string>()), ", ",
                  EscapeHtml(summary["started_at"].get<std::string>()), "</p>\n");
  for (const Json& load : summary["loads"]) {
    for (const Json& warning : load["warnings"]) {
      absl::StrAppend(&html, "<p class=\"warning\">", EscapeHtml(NameOf(load)), ": ",
                      EscapeHtml(warning.get<std::string>()), "</p>\n");
    }
  }
  absl::StrAppend(&html, "<div class=\"charts\">\n", RenderChart(KneeChart(summary["loads"])),
                  RenderChart(GoodputChart(summary["loads"])), "</div>\n");
  for (const Json& load : summary["loads"]) AppendLoad(load, &html);
  return html + "</body></html>\n";
}

}  // namespace vivarium::cli::bench
