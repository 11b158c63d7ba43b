#include "cli/bench/compare.h"

#include <algorithm>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/histogram.h"
#include "cli/bench/summary.h"

namespace vivarium::cli::bench {
namespace {

constexpr double kMeanInstead = -1;  // of a quantile

struct Figure {
  const char* name;
  const char* group;
  const char* key;
  double quantile;
  bool is_higher_better;
};
constexpr Figure kFigures[] = {{"output_tok_s", "timeline", "output_tok_s", kMeanInstead, true},
                               {"ttft_p50_ms", "samples_ms", "ttft", 0.5, false},
                               {"ttft_p99_ms", "samples_ms", "ttft", 0.99, false},
                               {"tpot_p50_ms", "samples_ms", "tpot", 0.5, false},
                               {"tpot_p99_ms", "samples_ms", "tpot", 0.99, false},
                               {"e2e_p50_ms", "samples_ms", "e2e", 0.5, false},
                               {"e2e_p99_ms", "samples_ms", "e2e", 0.99, false}};

std::vector<double> SamplesOf(const Json& load, const Figure& figure) {
  std::vector<double> samples;
  const Json& values = load[figure.group][figure.key];
  const size_t skipped = figure.quantile == kMeanInstead ? values.size() / 8 : 0;
  for (size_t i = skipped; i + skipped < values.size(); ++i) samples.push_back(values[i]);
  return samples;
}

double Statistic(std::vector<double>* samples, double quantile) {
  if (quantile == kMeanInstead) {
    double sum = 0;
    for (const double sample : *samples) sum += sample;
    return sum / static_cast<double>(samples->size());
  }
  std::sort(samples->begin(), samples->end());
  return QuantileOfSorted(*samples, quantile);
}

double Resampled(const std::vector<double>& samples, double quantile, std::mt19937_64* random) {
  std::uniform_int_distribution<size_t> draw(0, samples.size() - 1);
  std::vector<double> resample(samples.size());
  for (double& value : resample) value = samples[draw(*random)];
  return Statistic(&resample, quantile);
}

Json CompareFigure(const Json& before, const Json& after, const Figure& figure, double threshold) {
  std::vector<double> a = SamplesOf(before, figure), b = SamplesOf(after, figure);
  Json comparison = {{"figure", figure.name}, {"verdict", "unknown"}};
  if (std::min(a.size(), b.size()) < kMinComparedSamples) return comparison;
  const double old_value = Statistic(&a, figure.quantile);
  const double new_value = Statistic(&b, figure.quantile);
  comparison["before"] = old_value;
  comparison["after"] = new_value;
  if (old_value <= 0) return comparison;
  std::mt19937_64 random(1);
  std::vector<double> changes;
  for (int i = 0; i < kNumResamples; ++i) {
    const double base = Resampled(a, figure.quantile, &random);
    changes.push_back((Resampled(b, figure.quantile, &random) - base) / std::max(base, 1e-12));
  }
  std::sort(changes.begin(), changes.end());
  const double low = QuantileOfSorted(changes, (1 - kConfidence) / 2);
  const double high = QuantileOfSorted(changes, (1 + kConfidence) / 2);
  comparison["change"] = (new_value - old_value) / old_value;
  comparison["low"] = low;
  comparison["high"] = high;
  const bool is_above = low > threshold, is_below = high < -threshold;
  const bool is_worse = figure.is_higher_better ? is_below : is_above;
  comparison["verdict"] = is_worse ? "worse" : is_above || is_below ? "better" : "same";
  return comparison;
}

bool IsLoad(const Json& load) {
  if (!load.is_object() || !load.contains("load")) return false;
  for (const Figure& figure : kFigures) {
    if (!load.contains(figure.group) || !load[figure.group].is_object() ||
        !load[figure.group].contains(figure.key)) {
      return false;
    }
    const Json& values = load[figure.group][figure.key];
    if (!values.is_array() || !std::all_of(values.begin(), values.end(),
                                           [](const Json& value) { return value.is_number(); })) {
      return false;
    }
  }
  return true;
}

absl::Status CheckSummary(const Json& summary, const char* which) {
  const bool is_good = summary.is_object() && summary.contains("schema") &&
                       summary["schema"] == kSummarySchema && summary.contains("loads") &&
                       summary["loads"].is_array() &&
                       std::all_of(summary["loads"].begin(), summary["loads"].end(), IsLoad);
  if (is_good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the ", which, " summary is none of schema '",
                                                 kSummarySchema, "', as bench --json prints it"));
}

}  // namespace

absl::StatusOr<Json> Compare(const Json& before, const Json& after, double threshold) {
  if (const auto status = CheckSummary(before, "first"); !status.ok()) return status;
  if (const auto status = CheckSummary(after, "second"); !status.ok()) return status;
  if (before["loads"].size() != after["loads"].size()) {
    return absl::InvalidArgumentError(absl::StrCat("the first summary has ", before["loads"].size(),
                                                   " loads, the second ", after["loads"].size()));
  }
  Json comparisons = Json::array();
  bool is_worse = false;
  for (size_t i = 0; i < before["loads"].size(); ++i) {
    const Json& a = before["loads"][i];
    const Json& b = after["loads"][i];
    if (a["load"] != b["load"]) {
      return absl::InvalidArgumentError(absl::StrCat("load ", i, " is ", a["load"].dump(),
                                                     " in the first summary, ", b["load"].dump(),
                                                     " in the second"));
    }
    for (const Figure& figure : kFigures) {
      Json comparison = CompareFigure(a, b, figure, threshold);
      comparison["load"] = i;
      is_worse |= comparison["verdict"] == "worse";
      comparisons.push_back(std::move(comparison));
    }
  }
  return Json{{"method", "percentile bootstrap, 95 %"},
              {"threshold", threshold},
              {"worse", is_worse},
              {"comparisons", comparisons}};
}

std::string RenderComparison(const Json& comparison) {
  Table table({{"load", true},
               {"figure"},
               {"before", true},
               {"after", true},
               {"change", true},
               {"95 % interval", true},
               {"verdict"}});
  for (const Json& row : comparison["comparisons"]) {
    const auto number = [&row](const char* key, const char* format, double scale) {
      if (!row.contains(key)) return std::string("-");
      const double value = row[key].get<double>() * scale;
      return format[1] == '+' ? absl::StrFormat("%+.1f %%", value) : absl::StrFormat("%.4g", value);
    };
    const std::string interval =
        row.contains("low") ? number("low", "%+", 100) + " .. " + number("high", "%+", 100) : "-";
    table.Add({absl::StrCat(row["load"].get<uint64_t>()), row["figure"], number("before", "%g", 1),
               number("after", "%g", 1), number("change", "%+", 100), interval, row["verdict"]});
  }
  return table.Render();
}

}  // namespace vivarium::cli::bench
