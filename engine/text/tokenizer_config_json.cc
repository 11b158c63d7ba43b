// tokenizer_config.json -> TokenizerConfig.
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/json_fields.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_spec.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;

// A token is written as its content, or as an object that has it.
std::optional<std::string> TokenContent(const json& token, const std::string& place,
                                        absl::Status* status) {
  if (token.is_null()) return std::nullopt;
  if (token.is_string()) return token.get<std::string>();
  return JsonFields(token, place, status).RequiredString("content");
}

std::optional<std::string> NamedToken(const JsonFields& config, const char* key,
                                      TokenizerConfig* out, absl::Status* status) {
  std::optional<std::string> content = TokenContent(config.Get(key), config.Place(key), status);
  if (content.has_value()) out->named_tokens.push_back(*content);
  return content;
}

// One template, or a list of named ones of which "default" is meant.
std::string ChatTemplate(const JsonFields& config, absl::Status* status) {
  const json& value = config.Get("chat_template");
  if (!value.is_array()) return config.String("chat_template", "");
  for (size_t i = 0; i < value.size(); ++i) {
    const JsonFields entry(value[i], absl::StrCat(config.Place("chat_template"), "[", i, "]"),
                           status);
    if (entry.String("name", "") == "default") return entry.RequiredString("template");
  }
  return "";
}

}  // namespace

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view text) {
  absl::StatusOr<json> root = ParseJson(text, kMaxTokenizerJsonDepth);
  if (!root.ok()) return root.status();
  absl::Status status;
  const JsonFields config(*root, "(root)", &status);
  TokenizerConfig out;
  out.bos_token = NamedToken(config, "bos_token", &out, &status);
  out.eos_token = NamedToken(config, "eos_token", &out, &status);
  for (const char* key : {"unk_token", "pad_token", "sep_token", "cls_token", "mask_token"}) {
    NamedToken(config, key, &out, &status);
  }
  if (config.Has("additional_special_tokens")) {
    const json& tokens = config.RequiredArray("additional_special_tokens");
    for (size_t i = 0; i < tokens.size(); ++i) {
      const std::string place = absl::StrCat("additional_special_tokens[", i, "]");
      std::optional<std::string> content = TokenContent(tokens[i], place, &status);
      if (content.has_value()) out.named_tokens.push_back(*std::move(content));
    }
  }
  if (config.Has("add_bos_token")) out.add_bos_token = config.Bool("add_bos_token", false);
  out.chat_template = ChatTemplate(config, &status);
  if (!status.ok()) return status;
  return out;
}

}  // namespace vivarium::engine
