#include "cli/bench/live_view.h"

#include <cstdio>

#include "absl/strings/str_format.h"
#include "cli/output.h"

namespace vivarium::cli::bench {
namespace {

constexpr double kPlainSeconds = 10;
constexpr int kBarCells = 12;

}  // namespace

std::string ProgressLine(const std::string& title, const LoadProgress& progress,
                         double tokens_per_s) {
  const int full = static_cast<int>(progress.done_share * kBarCells);
  std::string bar(static_cast<size_t>(full), '#');
  bar.resize(kBarCells, '.');
  return absl::StrFormat(
      "%s [%s] %.0f s  in flight %d  done %d  errors %d  %.0f tok/s  TTFT %.3g/%.3g  ITL %.3g/%.3g "
      "ms",
      title, bar, progress.elapsed_s, progress.in_flight + progress.waiting, progress.done,
      progress.errors, tokens_per_s, progress.ttft_p50_ms, progress.ttft_p99_ms,
      progress.itl_p50_ms, progress.itl_p99_ms);
}

LiveView::LiveView(bool is_shown) : is_shown_(is_shown), is_terminal_(IsTerminal(stderr)) {}

void LiveView::Begin(const std::string& title) {
  title_ = title;
  last_shown_s_ = 0;
  last_s_ = 0;
}

void LiveView::Show(const LoadProgress& progress) {
  if (!is_shown_) return;
  if (!is_terminal_ && progress.elapsed_s - last_shown_s_ < kPlainSeconds) return;
  last_shown_s_ = progress.elapsed_s;
  // The client's count goes on over several loads.
  const double seconds = progress.elapsed_s - last_s_;
  const double rate =
      seconds > 0 ? static_cast<double>(progress.output_tokens - last_tokens_) / seconds : 0;
  last_s_ = progress.elapsed_s;
  last_tokens_ = progress.output_tokens;
  const std::string line = ProgressLine(title_, progress, rate);
  if (is_terminal_) {
    std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    has_line_ = true;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

void LiveView::Clear() {
  if (has_line_) std::fprintf(stderr, "\r\x1b[K");
  has_line_ = false;
}

}  // namespace vivarium::cli::bench
