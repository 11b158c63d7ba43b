#include "cli/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "cli/interrupt.h"
#include "cli/output.h"

namespace vivarium::cli {

LineReader::LineReader()
    : is_terminal_(IsTerminal(stdin)), interrupt_fd_(OpenInterruptDescriptor()) {}

LineReader::~LineReader() { close(interrupt_fd_); }

std::optional<std::string> LineReader::TakeLine(bool at_end) {
  const size_t end = std::min(buffered_.find('\n'), buffered_.size());
  const bool is_whole = end < buffered_.size() || end >= kMaxLineBytes || (at_end && end > 0);
  if (!is_whole) return std::nullopt;
  const size_t size = std::min(end, kMaxLineBytes);
  std::string line = buffered_.substr(0, size);
  buffered_.erase(0, size + (size == end && end < buffered_.size() ? 1 : 0));
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return line;
}

std::optional<std::string> LineReader::Read(std::string_view prompt) {
  if (is_terminal_) PrintNow(prompt);
  while (true) {
    if (auto line = TakeLine(/*at_end=*/false)) return line;
    pollfd events[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_fd_, POLLIN, 0}};
    if (poll(events, 2, -1) < 0 && errno == EINTR) continue;
    if (events[1].revents != 0) return std::nullopt;
    char chunk[4096];
    const ssize_t size = read(STDIN_FILENO, chunk, sizeof(chunk));
    if (size <= 0) return TakeLine(/*at_end=*/true);
    buffered_.append(chunk, static_cast<size_t>(size));
  }
}

}  // namespace vivarium::cli
