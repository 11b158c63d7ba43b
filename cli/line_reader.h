// LineReader: lines that a person types, or that a script pipes in.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace vivarium::cli {

inline constexpr size_t kMaxLineBytes = size_t{1} << 20;

// Reads standard input. Needs BlockInterrupts: Ctrl-C at the prompt ends the input instead of the
// process. Not thread-safe.
class LineReader {
 public:
  LineReader();
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // Prints `prompt` where standard input is a terminal, and waits for a line (without its end;
  // bytes past kMaxLineBytes make a line of their own). Nothing at the end of input or on Ctrl-C.
  std::optional<std::string> Read(std::string_view prompt);

 private:
  std::optional<std::string> TakeLine(bool at_end);

  std::string buffered_;
  bool is_terminal_;
  int interrupt_fd_;
};

}  // namespace vivarium::cli
