// What a command prints: JSON, errors, tables, sizes, progress. Data goes to standard output,
// everything said about it to standard error.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace vivarium::cli {

// Keeps the order of insertion.
using Json = nlohmann::ordered_json;

// One JSON value on one line of standard output.
void PrintJson(const Json& value);
// `text` on standard output, at once. Text after a failed write is dropped: the reader is gone.
void PrintNow(std::string_view text);
void PrintLine(std::string_view text);

// Prints "vivarium: SENTENCE" to standard error and returns `exit_code`.
int Fail(int exit_code, std::string_view sentence);
// The same with the status's message; for what went wrong on this machine (kExitLocalError).
int FailLocally(const absl::Status& status);

// Whether `stream` is a terminal whose output may be coloured (NO_COLOR is respected).
bool IsTerminal(std::FILE* stream);
bool MayColor(std::FILE* stream);
// `text` in faint letters where standard error may be coloured.
std::string Faint(std::string_view text);

// "812 B", "3.1 MB" (decimal units).
std::string FormatBytes(uint64_t bytes);
// "12,345".
std::string FormatCount(uint64_t count);

// Rows printed in columns as wide as their widest cell (in code points), two spaces apart; columns
// of numbers to the right.
class Table {
 public:
  struct Column {
    std::string title;
    bool is_number = false;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void Add(std::vector<std::string> cells);  // as many as there are columns
  std::string Render() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// A bar of bytes done on standard error, redrawn in place; silent where that is no terminal.
class Progress {
 public:
  // total_bytes 0 = unknown: then only the bytes done are shown.
  Progress(std::string label, uint64_t total_bytes);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Advance(uint64_t bytes);

 private:
  std::string label_;
  uint64_t total_bytes_;
  uint64_t done_bytes_ = 0;
  int drawn_permille_ = -1;
  bool is_shown_;
};

}  // namespace vivarium::cli
