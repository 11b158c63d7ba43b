// Prompts of a load test from a file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::cli::bench {

// The turns of one user; a plain prompt has one.
struct Prompt {
  std::vector<std::string> turns;
};

inline constexpr size_t kMaxPrompts = 1'000'000;
inline constexpr size_t kMaxTurns = 1'000;

// A prompt a line; or JSON lines {"prompt": "..."} and {"turns": ["...", ...]} where the first line
// begins with '{'. Empty lines are passed over. INVALID_ARGUMENT naming `name`, line and what is
// expected.
absl::StatusOr<std::vector<Prompt>> ParsePrompts(std::string_view contents,
                                                 const std::string& name);

}  // namespace vivarium::cli::bench
