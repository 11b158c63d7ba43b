#include "cli/bench/prompts.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace vivarium::cli::bench {
namespace {

absl::StatusOr<Prompt> ParseJsonPrompt(std::string_view line, const std::string& where) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  Prompt prompt;
  if (json.is_object() && json.contains("prompt") && json["prompt"].is_string()) {
    prompt.turns.push_back(json["prompt"].get<std::string>());
  } else if (json.is_object() && json.contains("turns") && json["turns"].is_array()) {
    for (const auto& turn : json["turns"]) {
      if (turn.is_string()) prompt.turns.push_back(turn.get<std::string>());
    }
    if (prompt.turns.size() != json["turns"].size()) prompt.turns.clear();
  }
  for (const std::string& turn : prompt.turns) {
    if (turn.empty()) prompt.turns.clear();
    if (prompt.turns.empty()) break;
  }
  if (prompt.turns.empty() || prompt.turns.size() > kMaxTurns) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": expected {\"prompt\": \"...\"} or {\"turns\": [\"...\", ...]} with 1 .. ",
        kMaxTurns, " texts, none empty"));
  }
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<Prompt>> ParsePrompts(std::string_view contents,
                                                 const std::string& name) {
  std::vector<Prompt> prompts;
  const size_t first = contents.find_first_not_of(" \t\r\n");
  const bool is_json = first != std::string_view::npos && contents[first] == '{';
  size_t line_number = 0;
  while (!contents.empty()) {
    ++line_number;
    const size_t end = contents.find('\n');
    std::string_view line = contents.substr(0, end);
    contents.remove_prefix(end == std::string_view::npos ? contents.size() : end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    if (prompts.size() == kMaxPrompts) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ":", line_number, ": more than ", kMaxPrompts, " prompts"));
    }
    if (!is_json) {
      prompts.push_back({{std::string(line)}});
      continue;
    }
    auto prompt = ParseJsonPrompt(line, absl::StrCat(name, ":", line_number));
    if (!prompt.ok()) return prompt.status();
    prompts.push_back(*std::move(prompt));
  }
  if (prompts.empty()) {
    return absl::InvalidArgumentError(name + ": holds no prompt; expected one a line");
  }
  return prompts;
}

}  // namespace vivarium::cli::bench
