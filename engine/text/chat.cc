#include "engine/text/chat.h"

#include <xxhash.h>

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

ChatTable StoriesTable() {
  // Its template writes every role but the assistant's as the user's.
  return {.roles = {{"system", "<|user|>", "<|end|>"},
                    {"user", "<|user|>", "<|end|>"},
                    {"assistant", "<|assistant|>", "<|end|>"}},
          .generation_role = "assistant",
          .required_tokens = {"<|user|>", "<|assistant|>", "<|end|>"}};
}

ChatTable ChatMlTable() {
  ChatTable table;
  for (const char* role : {"system", "user", "assistant", "tool"}) {
    table.roles.push_back({role, absl::StrCat("<|im_start|>", role, "\n"), "<|im_end|>\n"});
  }
  table.required_tokens = {"<|im_start|>", "<|im_end|>"};
  return table;
}

struct KnownFormat {
  const char* name;
  ChatTable (*table)();
};

constexpr KnownFormat kKnownFormats[] = {{"vivarium-stories", StoriesTable},
                                         {"chatml", ChatMlTable}};

// Templates by the XXH3-128 (low, high half) of their source. The tests have the sources.
struct KnownTemplate {
  XXH128_hash_t hash;
  const char* name;
};

constexpr KnownTemplate kKnownTemplates[] = {
    {{0x72667F66F41843DE, 0xA581EAD211EB8680}, "vivarium-stories"},
    // ChatML, with its line ends escaped or literal, and with add_generation_prompt defaulted or
    // not.
    {{0xE2BE9FD6966BB5EB, 0x577A7FCE73F72E1E}, "chatml"},
    {{0x56191E205A440263, 0xF0A6A8278439FDB0}, "chatml"},
    {{0x846F9032C2079EA2, 0x7A128E0473E4BE90}, "chatml"},
    {{0xDA206A9E46A4AC01, 0xA344E8C84FB0282D}, "chatml"},
};

}  // namespace

ChatFormat::ChatFormat(std::string name, ChatTable table)
    : name_(std::move(name)), table_(std::move(table)) {}

std::vector<std::string> ChatFormat::KnownNames() {
  std::vector<std::string> names;
  for (const KnownFormat& format : kKnownFormats) names.emplace_back(format.name);
  return names;
}

absl::StatusOr<ChatFormat> ChatFormat::ForName(std::string_view name) {
  for (const KnownFormat& format : kKnownFormats) {
    if (name == format.name) return ChatFormat(format.name, format.table());
  }
  return absl::NotFoundError(absl::StrCat("no chat format '", std::string(name),
                                          "'; known: ", absl::StrJoin(KnownNames(), ", ")));
}

absl::StatusOr<ChatFormat> ChatFormat::ForTemplate(std::string_view chat_template) {
  const XXH128_hash_t hash = XXH3_128bits(chat_template.data(), chat_template.size());
  for (const KnownTemplate& known : kKnownTemplates) {
    if (XXH128_isEqual(known.hash, hash) != 0) return ForName(known.name);
  }
  return absl::FailedPreconditionError(absl::StrCat(
      chat_template.empty() ? "the model has no chat template"
                            : "the model's chat template is not a known one",
      "; name a chat format to use one anyway, of: ", absl::StrJoin(KnownNames(), ", ")));
}

absl::StatusOr<ChatFormat> ChatFormat::FromTable(ChatTable table) {
  if (table.roles.empty() || table.roles.size() > kMaxChatRoles) {
    return absl::InvalidArgumentError(absl::StrCat("a chat format has ", table.roles.size(),
                                                   " roles, expected 1 to ", kMaxChatRoles));
  }
  std::set<std::string> names;
  for (const ChatRole& role : table.roles) {
    if (role.role.empty()) return absl::InvalidArgumentError("a chat role has no name");
    if (!names.insert(role.role).second) {
      return absl::InvalidArgumentError(absl::StrCat("chat role '", role.role, "' appears twice"));
    }
    for (const std::string& affix : {role.prefix, role.suffix}) {
      if (affix.size() <= kMaxChatAffixBytes && !FindInvalidUtf8(affix).has_value()) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("chat role '", role.role, "': prefix and suffix must be UTF-8 of at most ",
                       kMaxChatAffixBytes, " bytes"));
    }
  }
  if (!names.contains(table.generation_role)) {
    return absl::InvalidArgumentError(
        absl::StrCat("generation role '", table.generation_role, "' is not one of the roles"));
  }
  return ChatFormat("table", std::move(table));
}

const ChatRole* ChatFormat::FindRole(std::string_view role) const {
  for (const ChatRole& known : table_.roles) {
    if (known.role == role) return &known;
  }
  return nullptr;
}

absl::StatusOr<std::vector<int32_t>> ChatFormat::CloseTurn(const Tokenizer& tokenizer,
                                                           int32_t pending_token) const {
  const std::string& suffix = FindRole(table_.generation_role)->suffix;
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(suffix, {.parse_special = true});
  if (ids.ok() && !ids->empty() && ids->front() == pending_token) ids->erase(ids->begin());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ChatFormat::Render(const Tokenizer& tokenizer,
                                                        std::span<const ChatMessage> messages,
                                                        const RenderOptions& options) const {
  for (const std::string& token : table_.required_tokens) {
    const std::optional<int32_t> id = tokenizer.TokenToId(token);
    if (id.has_value() && tokenizer.IsSpecial(*id)) continue;
    return absl::FailedPreconditionError(absl::StrCat("chat format '", name_,
                                                      "' needs the special token '", token,
                                                      "', which the tokenizer does not have"));
  }
  if (messages.size() > kMaxChatMessages) {
    return absl::InvalidArgumentError(
        absl::StrCat(messages.size(), " messages, at most ", kMaxChatMessages, " are rendered"));
  }
  if (messages.empty() && !options.continues) {
    return absl::InvalidArgumentError("a chat needs at least one message");
  }
  std::vector<Tokenizer::TextPart> parts;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatRole* role = FindRole(messages[i].role);
    if (role == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "message ", i, ": unknown role '", messages[i].role, "', expected one of: ",
          absl::StrJoin(table_.roles, ", ",
                        [](std::string* out, const ChatRole& r) { out->append(r.role); })));
    }
    if (const auto invalid = FindInvalidUtf8(messages[i].content); invalid.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", i, ": content is not valid UTF-8 at byte ", *invalid));
    }
    parts.push_back({role->prefix, true});
    parts.push_back({messages[i].content, false});
    parts.push_back({role->suffix, true});
  }
  if (options.add_generation_prompt) {
    parts.push_back({FindRole(table_.generation_role)->prefix, true});
  }
  std::vector<int32_t> ids;
  if (options.continues && options.pending_token.has_value()) {
    absl::StatusOr<std::vector<int32_t>> closing = CloseTurn(tokenizer, *options.pending_token);
    if (!closing.ok()) return closing.status();
    ids = *std::move(closing);
  } else if (!options.continues && tokenizer.add_bos_token()) {
    ids.push_back(tokenizer.bos_token_id().value());
  }
  absl::StatusOr<std::vector<int32_t>> rest = tokenizer.EncodeParts(parts);
  if (!rest.ok()) return rest.status();
  ids.insert(ids.end(), rest->begin(), rest->end());
  if (ids.empty()) return absl::InvalidArgumentError("the chat renders to nothing");
  return ids;
}

}  // namespace vivarium::engine
