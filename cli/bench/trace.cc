#include "cli/bench/trace.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace vivarium::cli::bench {
namespace {

constexpr char kAzureHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens";
constexpr size_t kMaxShownBytes = 80;

absl::Status Malformed(const std::string& where, std::string_view found,
                       std::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": found '",
                                                 std::string(found.substr(0, kMaxShownBytes)),
                                                 "', expected ", std::string(expected)));
}

bool Digits(std::string_view text, size_t from, size_t count, int64_t* value) {
  if (from + count > text.size()) return false;
  *value = 0;
  for (const char c : text.substr(from, count)) {
    if (c < '0' || c > '9') return false;
    *value = *value * 10 + (c - '0');
  }
  return true;
}

// "2023-11-16 18:17:03.9799600" as seconds; false when it is no such thing.
bool ParseTimestamp(std::string_view text, double* seconds) {
  int64_t year, month, day, hour, minute, second, fraction = 0;
  if (!Digits(text, 0, 4, &year) || !Digits(text, 5, 2, &month) || !Digits(text, 8, 2, &day) ||
      !Digits(text, 11, 2, &hour) || !Digits(text, 14, 2, &minute) ||
      !Digits(text, 17, 2, &second) || text[4] != '-' || text[7] != '-' || text[10] != ' ' ||
      text[13] != ':' || text[16] != ':' || hour > 23 || minute > 59 || second > 60) {
    return false;
  }
  double fraction_seconds = 0;
  if (text.size() > 19) {
    const size_t digits = text.size() - 20;
    if (text[19] != '.' || digits < 1 || digits > 9 || !Digits(text, 20, digits, &fraction)) {
      return false;
    }
    fraction_seconds = static_cast<double>(fraction);
    for (size_t i = 0; i < digits; ++i) fraction_seconds /= 10;
  }
  const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(year)),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok()) return false;
  const int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  *seconds =
      static_cast<double>(((days * 24 + hour) * 60 + minute) * 60 + second) + fraction_seconds;
  return true;
}

bool IsLength(int64_t tokens) { return tokens >= 0 && tokens <= kMaxTraceTokens; }

absl::StatusOr<TraceRow> ParseAzureRow(std::string_view line, const std::string& where) {
  const std::vector<std::string> fields =
      absl::StrSplit(absl::string_view(line.data(), line.size()), ',');
  TraceRow row;
  int64_t input, output;
  if (fields.size() != 3 || !ParseTimestamp(fields[0], &row.at_s) ||
      !absl::SimpleAtoi(fields[1], &input) || !absl::SimpleAtoi(fields[2], &output) ||
      !IsLength(input) || !IsLength(output)) {
    return Malformed(
        where, line,
        absl::StrCat("YYYY-MM-DD HH:MM:SS.fffffff,N,N with N in 0 .. ", kMaxTraceTokens));
  }
  row.input_tokens = static_cast<int32_t>(input);
  row.output_tokens = static_cast<int32_t>(output);
  return row;
}

absl::StatusOr<TraceRow> ParseMooncakeRow(std::string_view line, const std::string& where) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const auto length = [&json](const char* name, int32_t* value) {
    if (!json.contains(name) || !json[name].is_number_integer()) return false;
    const auto tokens = json[name].get<int64_t>();
    *value = static_cast<int32_t>(tokens);
    return IsLength(tokens);
  };
  TraceRow row;
  bool is_good = json.is_object() && json.contains("timestamp") && json["timestamp"].is_number() &&
                 length("input_length", &row.input_tokens) &&
                 length("output_length", &row.output_tokens);
  if (is_good && json.contains("hash_ids")) {
    const auto& ids = json["hash_ids"];
    is_good = ids.is_array() && ids.size() <= kMaxHashIds;
    for (size_t i = 0; is_good && i < ids.size(); ++i) {
      is_good = ids[i].is_number_integer();
      if (is_good) row.hash_ids.push_back(ids[i].get<int64_t>());
    }
  }
  if (!is_good) {
    return Malformed(where, line,
                     absl::StrCat("{\"timestamp\": MS, \"input_length\": N, \"output_length\": N, "
                                  "\"hash_ids\": [ID, ...]} with N in 0 .. ",
                                  kMaxTraceTokens, " and at most ", kMaxHashIds, " ids"));
  }
  row.at_s = json["timestamp"].get<double>() / 1000;
  return row;
}

}  // namespace

absl::StatusOr<std::vector<TraceRow>> ParseTrace(std::string_view contents,
                                                 const std::string& name) {
  if (contents.starts_with("\xef\xbb\xbf")) contents.remove_prefix(3);
  const bool is_json = contents.starts_with('{');
  std::vector<TraceRow> rows;
  size_t line_number = 0;
  while (!contents.empty()) {
    ++line_number;
    const size_t end = contents.find('\n');
    std::string_view line = contents.substr(0, end);
    contents.remove_prefix(end == std::string_view::npos ? contents.size() : end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const std::string where = absl::StrCat(name, ":", line_number);
    if (!is_json && line_number == 1) {
      if (line != kAzureHeader) {
        return Malformed(where, line, absl::StrCat("'", kAzureHeader, "', or JSON lines"));
      }
      continue;
    }
    if (line.empty()) continue;
    if (rows.size() == kMaxTraceRows) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": more than ", kMaxTraceRows, " rows"));
    }
    auto row = is_json ? ParseMooncakeRow(line, where) : ParseAzureRow(line, where);
    if (!row.ok()) return row.status();
    if (!rows.empty() && row->at_s < rows.back().at_s) {
      return Malformed(where, line, "rows in order of time");
    }
    rows.push_back(*std::move(row));
  }
  if (rows.empty()) return absl::InvalidArgumentError(name + ": holds no row of a trace");
  const double start = rows.front().at_s;
  for (TraceRow& row : rows) row.at_s -= start;
  return rows;
}

}  // namespace vivarium::cli::bench
