// Charts as inline SVG.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vivarium::cli::bench {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // drawn in this order
};

struct Chart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool has_markers = false;  // dots at the points
};

// An <svg> element with axes from 0, ticks and a legend. Points that aren't finite are left out; a
// chart without points says so.
std::string RenderChart(const Chart& chart);

// With &, <, > and quotes as entities.
std::string EscapeHtml(std::string_view text);

}  // namespace vivarium::cli::bench
