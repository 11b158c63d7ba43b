#include "cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/exit_code.h"

namespace vivarium::cli {
namespace {

// Code points of valid UTF-8: its bytes that don't continue a character.
size_t NumCodePoints(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

void PrintNow(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void PrintLine(std::string_view text) { PrintNow(std::string(text) + "\n"); }

void PrintJson(const Json& value) {
  PrintLine(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

int Fail(int exit_code, std::string_view sentence) {
  std::fflush(stdout);
  std::fprintf(stderr, "vivarium: %.*s\n", static_cast<int>(sentence.size()), sentence.data());
  return exit_code;
}

int FailLocally(const absl::Status& status) {
  return Fail(kExitLocalError, std::string(status.message()));
}

bool IsTerminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool MayColor(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  return IsTerminal(stream) && (no_color == nullptr || *no_color == '\0');
}

std::string Faint(std::string_view text) {
  return MayColor(stderr) ? "\x1b[2m" + std::string(text) + "\x1b[0m" : std::string(text);
}

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.95 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatCount(uint64_t count) {
  std::string digits = std::to_string(count);
  for (size_t end = digits.size(); end > 3; end -= 3) digits.insert(end - 3, ",");
  return digits;
}

void Table::Add(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::Render() const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    size_t width = NumCodePoints(columns_[c].title);
    for (const auto& row : rows_) width = std::max(width, NumCodePoints(row[c]));
    widths.push_back(width);
  }
  std::string out;
  const auto add_cell = [&](size_t c, const std::string& cell) {
    const std::string padding(widths[c] - NumCodePoints(cell), ' ');
    if (c > 0) out += "  ";
    out += columns_[c].is_number ? padding + cell : cell;
    if (!columns_[c].is_number && c + 1 < columns_.size()) out += padding;
  };
  for (size_t c = 0; c < columns_.size(); ++c) add_cell(c, columns_[c].title);
  out += "\n";
  for (const auto& row : rows_) {
    for (size_t c = 0; c < columns_.size(); ++c) add_cell(c, row[c]);
    out += "\n";
  }
  return out;
}

Progress::Progress(std::string label, uint64_t total_bytes)
    : label_(std::move(label)), total_bytes_(total_bytes), is_shown_(IsTerminal(stderr)) {}

Progress::~Progress() {
  if (is_shown_ && drawn_permille_ >= 0) std::fputs("\r\x1b[K", stderr);
}

void Progress::Advance(uint64_t bytes) {
  constexpr int kBarCells = 30;
  done_bytes_ += bytes;
  if (!is_shown_) return;
  // Of an unknown total, a redraw per 256 KiB stands in for a thousandth.
  const uint64_t permille = total_bytes_ > 0
                                ? std::min<uint64_t>(1000, done_bytes_ * 1000 / total_bytes_)
                                : (done_bytes_ >> 18) % 1000;
  if (static_cast<int>(permille) == drawn_permille_) return;
  drawn_permille_ = static_cast<int>(permille);
  std::string line = absl::StrCat("\r", label_, " ");
  if (total_bytes_ > 0) {
    const int filled = static_cast<int>(permille) * kBarCells / 1000;
    line += "[" + std::string(filled, '#') + std::string(kBarCells - filled, '.') + "] ";
    absl::StrAppendFormat(&line, "%3d %% of %s", permille / 10, FormatBytes(total_bytes_));
  } else {
    line += FormatBytes(done_bytes_);
  }
  std::fputs((line + "\x1b[K").c_str(), stderr);
}

}  // namespace vivarium::cli
