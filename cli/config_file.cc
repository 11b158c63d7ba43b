#include "cli/config_file.h"

#include <optional>
#include <sstream>
#include <utility>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include <CLI/Error.hpp>
#include <CLI/Option.hpp>

#include "absl/strings/str_cat.h"
#include "cli/token_ids.h"

namespace vivarium::cli {
namespace {

std::string At(const std::string& path, const toml::source_region& source) {
  return absl::StrCat(path, ":", source.begin.line, ": ");
}

// The value as written, for messages.
std::string AsWritten(const toml::node& node) {
  if (node.is_table()) return "a section";
  std::ostringstream text;
  node.visit([&text](const auto& value) { text << value; });
  return text.str();
}

bool TakesNumber(const CLI::Option& option) {
  return option.get_type_name() == kNumber || option.get_type_name() == kNumberOrAuto;
}

// The value as CLI11 reads it, when it has the type that `option` takes.
std::optional<std::string> ValueFor(const CLI::Option& option, const toml::node& node) {
  if (option.get_expected_max() == 0) {
    if (const auto flag = node.value_exact<bool>()) return *flag ? "true" : "false";
  } else if (TakesNumber(option)) {
    if (const auto number = node.value_exact<int64_t>()) return absl::StrCat(*number);
    const auto text = node.value_exact<std::string>();
    if (option.get_type_name() == kNumberOrAuto && text == "auto") return *text;
  } else if (const auto text = node.value_exact<std::string>()) {
    return *text;
  }
  return std::nullopt;
}

std::string Expected(const CLI::Option& option) {
  if (option.get_expected_max() == 0) return "true or false";
  if (!TakesNumber(option)) return "a string in quotes";
  return option.get_type_name() == kNumber ? "an integer" : "an integer or \"auto\"";
}

// The option of that name, if a config file may set it.
CLI::Option* FindOption(CLI::App* app, const std::string& key) {
  CLI::Option* option = app->get_option_no_throw("--" + key);
  return option != nullptr && option->get_configurable() ? option : nullptr;
}

std::string KnownKeys(CLI::App* app) {
  std::string known;
  for (const CLI::Option* option : app->get_options()) {
    if (!option->get_configurable() || option->get_lnames().empty()) continue;
    absl::StrAppend(&known, known.empty() ? "" : ", ", option->get_lnames().front());
  }
  return known;
}

// The problem with this key, or "".
std::string ApplyKey(CLI::App* app, const std::string& key, const toml::node& node) {
  CLI::Option* option = FindOption(app, key);
  if (option == nullptr) {
    return absl::StrCat("there is no setting ", key, "; expected one of ", KnownKeys(app));
  }
  const auto value = ValueFor(*option, node);
  if (!value) return absl::StrCat(key, " is ", AsWritten(node), "; expected ", Expected(*option));
  if (option->count() > 0) return "";  // the command line comes first
  try {
    option->add_result(*value);
    option->run_callback();
  } catch (const CLI::ParseError&) {
    return absl::StrCat(key, " is ", AsWritten(node), "; expected ", Expected(*option),
                        " in range");
  }
  return "";
}

}  // namespace

std::string ConfigFile::Locate(std::string_view message) const {
  if (message.substr(0, 2) != "--") return std::string(message);
  const std::string key(message.substr(2, message.find(' ') - 2));
  const auto line = lines.find(key);
  if (line == lines.end()) return std::string(message);
  return absl::StrCat(path, ":", line->second, ": ", std::string(message.substr(2)));
}

ConfigFile ApplyConfigFile(const std::string& path, CLI::App* app) {
  ConfigFile file;
  file.path = path;
  const auto text = ReadInputFile(path);
  if (!text.ok()) {
    file.problems.emplace_back(text.status().message());
    return file;
  }
  if (text->size() > kMaxConfigFileBytes) {
    file.problems.push_back(absl::StrCat(path, " has ", text->size(), " bytes; expected at most ",
                                         kMaxConfigFileBytes));
    return file;
  }
  const toml::parse_result parsed = toml::parse(*text, path);
  if (!parsed) {
    file.problems.push_back(At(path, parsed.error().source()) +
                            std::string(parsed.error().description()));
    return file;
  }
  for (const auto& [toml_key, node] : parsed.table()) {
    const std::string key(toml_key.str());
    file.lines[key] = static_cast<int>(toml_key.source().begin.line);
    const std::string problem = ApplyKey(app, key, node);
    if (!problem.empty()) file.problems.push_back(At(path, toml_key.source()) + problem);
  }
  return file;
}

}  // namespace vivarium::cli
