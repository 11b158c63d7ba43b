// A command's flags from a TOML file: keys are the flags' names without dashes in front.
#pragma once

#include <CLI/App.hpp>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace vivarium::cli {

// Type names of options that tell the file what to expect: an integer; or that, or "auto".
inline constexpr char kNumber[] = "N";
inline constexpr char kNumberOrAuto[] = "N|auto";

inline constexpr size_t kMaxConfigFileBytes = size_t{1} << 20;

// What a config file said, for messages about it.
struct ConfigFile {
  std::string path;
  std::map<std::string, int> lines;   // key -> line
  std::vector<std::string> problems;  // "FILE:LINE: KEY is ...; expected ..."

  // `message` about a flag ("--max-slots is 0; expected 1 .. 16384") as one about the file's line
  // when the flag came from there; otherwise unchanged.
  std::string Locate(std::string_view message) const;
};

// Gives `app`'s options the values in the file, except options that the command line has set: flags
// come before the file. Integers, strings and booleans must be that in TOML, too. Unknown keys,
// wrong types and values, and files that can't be read or parsed end up in `problems`.
ConfigFile ApplyConfigFile(const std::string& path, CLI::App* app);

}  // namespace vivarium::cli
