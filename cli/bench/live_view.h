// LiveView: how a load is going, on standard error.
#pragma once

#include <string>

#include "cli/bench/driver.h"

namespace vivarium::cli::bench {

// On a terminal one line, redrawn in place; elsewhere a line every 10 s. Not thread-safe.
class LiveView {
 public:
  explicit LiveView(bool is_shown);

  // `title` names the load that begins.
  void Begin(const std::string& title);
  void Show(const LoadProgress& progress);
  void Clear();

 private:
  const bool is_shown_;
  const bool is_terminal_;
  std::string title_;
  double last_shown_s_ = 0;
  double last_s_ = 0;
  uint64_t last_tokens_ = 0;
  bool has_line_ = false;
};

std::string ProgressLine(const std::string& title, const LoadProgress& progress,
                         double tokens_per_s);

}  // namespace vivarium::cli::bench
