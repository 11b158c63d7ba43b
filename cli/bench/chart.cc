#include "cli/bench/chart.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace vivarium::cli::bench {
namespace {

constexpr double kWidth = 560, kHeight = 320;
constexpr double kLeft = 64, kRight = 16, kTop = 34, kBottom = 46;
constexpr int kNumTicks = 5;
constexpr const char* kColors[] = {"#1f6feb", "#d1571b", "#1a7f37", "#8250df", "#bf3989"};

// 1, 2 or 5 times a power of ten, so that about kNumTicks of them reach `largest`.
double TickStep(double largest) {
  const double rough = std::max(largest, 1e-9) / kNumTicks;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10 * power;
}

struct Scale {
  double x_top, y_top;  // what the ends of the axes stand for
  double X(double x) const { return kLeft + x / x_top * (kWidth - kLeft - kRight); }
  double Y(double y) const { return kHeight - kBottom - y / y_top * (kHeight - kTop - kBottom); }
};

bool IsDrawn(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

std::string Text(double x, double y, const char* anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>", x, y, anchor,
                         EscapeHtml(text));
}

std::string RenderAxes(const Chart& chart, const Scale& scale, double x_step, double y_step) {
  std::string svg;
  for (double x = 0; x <= scale.x_top * 1.0001; x += x_step) {
    absl::StrAppend(&svg,
                    Text(scale.X(x), kHeight - kBottom + 16, "middle", absl::StrFormat("%.6g", x)));
  }
  for (double y = 0; y <= scale.y_top * 1.0001; y += y_step) {
    absl::StrAppendFormat(&svg,
                          "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                          kLeft, kWidth - kRight, scale.Y(y), scale.Y(y));
    absl::StrAppend(&svg, Text(kLeft - 6, scale.Y(y) + 4, "end", absl::StrFormat("%.6g", y)));
  }
  absl::StrAppend(&svg, Text(kWidth / 2, kHeight - 8, "middle", chart.x_label));
  absl::StrAppend(&svg, Text(8, kTop - 10, "start", chart.y_label));
  return svg;
}

std::string RenderSeries(const Chart& chart, size_t index, const Scale& scale) {
  const Series& series = chart.series[index];
  const char* color = kColors[index % std::size(kColors)];
  std::string path, dots;
  for (const auto& point : series.points) {
    if (!IsDrawn(point)) continue;
    absl::StrAppendFormat(&path, "%s%.1f,%.1f", path.empty() ? "" : " ", scale.X(point.first),
                          scale.Y(point.second));
    if (!chart.has_markers) continue;
    absl::StrAppendFormat(&dots, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>",
                          scale.X(point.first), scale.Y(point.second), color);
  }
  const double x = kLeft + 90 + 120 * static_cast<double>(index);
  return absl::StrFormat(
      "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>%s"
      "<rect x=\"%.1f\" y=\"%.1f\" width=\"10\" height=\"10\" fill=\"%s\"/>%s",
      path, color, dots, x, kTop - 19, color, Text(x + 14, kTop - 10, "start", series.name));
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string RenderChart(const Chart& chart) {
  double x_largest = 0, y_largest = 0;
  bool has_points = false;
  for (const Series& series : chart.series) {
    for (const auto& point : series.points) {
      if (!IsDrawn(point)) continue;
      has_points = true;
      x_largest = std::max(x_largest, point.first);
      y_largest = std::max(y_largest, point.second);
    }
  }
  std::string svg = absl::StrFormat(
      "<figure><figcaption>%s</figcaption><svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
      "aria-label=\"%s\">",
      EscapeHtml(chart.title), kWidth, kHeight, EscapeHtml(chart.title));
  if (has_points) {
    const double x_step = TickStep(x_largest), y_step = TickStep(y_largest);
    const Scale scale{std::max(std::ceil(x_largest / x_step), 1.0) * x_step,
                      std::max(std::ceil(y_largest / y_step), 1.0) * y_step};
    absl::StrAppend(&svg, RenderAxes(chart, scale, x_step, y_step));
    for (size_t i = 0; i < chart.series.size(); ++i) {
      absl::StrAppend(&svg, RenderSeries(chart, i, scale));
    }
  } else {
    absl::StrAppend(&svg, Text(kWidth / 2, kHeight / 2, "middle", "nothing was measured"));
  }
  return svg + "</svg></figure>\n";
}

}  // namespace vivarium::cli::bench
