// What the shells' completion scripts ask: `vivarium complete WORD...` (not in --help).
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace vivarium::cli {

inline constexpr char kCompleteCommand[] = "complete";

// Prints what may follow `words`, the complete words typed after `vivarium`: subcommands and flags,
// one a line, "WORD<tab>what it does". Reads the command tree itself, so it is never out of date.
void PrintCompletions(const CLI::App& root, const std::vector<std::string>& words);

}  // namespace vivarium::cli
