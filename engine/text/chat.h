// Chat messages -> prompt ids, by a table of what stands before and after each role's message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace vivarium::engine {

inline constexpr size_t kMaxChatRoles = 16;
inline constexpr size_t kMaxChatAffixBytes = 1024;  // of a prefix or suffix
inline constexpr size_t kMaxChatMessages = 4096;    // of one Render

struct ChatMessage {
  std::string role;
  std::string content;
};

// What stands around a message of `role`; special tokens in it are meant as such.
struct ChatRole {
  std::string role;
  std::string prefix;
  std::string suffix;
};

struct ChatTable {
  std::vector<ChatRole> roles;
  // The role whose prefix is the generation prompt, and whose suffix closes a generated turn.
  std::string generation_role = "assistant";
  // Special tokens the affixes use: a tokenizer without one of them can't render this format.
  std::vector<std::string> required_tokens;
};

struct RenderOptions {
  // The messages go on a thread: no BOS.
  bool continues = false;
  // With `continues`: the token the resumed state has pending, that is, the last one of the thread.
  // If it is the first token of the generated turn's suffix, that turn was closed, and what is left
  // of the suffix comes first; otherwise the turn was cut short, and the whole suffix does.
  // Absent: nothing comes first.
  std::optional<int32_t> pending_token = std::nullopt;
  // Ends with the generation role's prefix, so that the model speaks next.
  bool add_generation_prompt = true;
};

// How a model's chats are written. A value; const methods are thread-safe.
class ChatFormat {
 public:
  // The format of a known `chat_template` (recognised by the hash of its source).
  // FailedPrecondition: none is known; the message names the known formats.
  static absl::StatusOr<ChatFormat> ForTemplate(std::string_view chat_template);
  // A known format by name ("chatml" ...). NotFound names the known ones.
  static absl::StatusOr<ChatFormat> ForName(std::string_view name);
  // InvalidArgument: a bound is passed, a role appears twice, is empty or lacks, or an affix is not
  // UTF-8.
  static absl::StatusOr<ChatFormat> FromTable(ChatTable table);
  static std::vector<std::string> KnownNames();

  // The ids of `messages` (new ones only, if `options.continues`). Content never gives special
  // tokens. BOS is first if the tokenizer wants one and this is no continuation.
  // InvalidArgument: no messages and nothing else to render, too many of them, an unknown role
  // (named), content that is not UTF-8. FailedPrecondition: `tokenizer` lacks a required token.
  absl::StatusOr<std::vector<int32_t>> Render(const Tokenizer& tokenizer,
                                              std::span<const ChatMessage> messages,
                                              const RenderOptions& options) const;

  const std::string& name() const { return name_; }
  const ChatTable& table() const { return table_; }

 private:
  ChatFormat(std::string name, ChatTable table);

  const ChatRole* FindRole(std::string_view role) const;
  // What is left of the generated turn's suffix after `pending_token`.
  absl::StatusOr<std::vector<int32_t>> CloseTurn(const Tokenizer& tokenizer,
                                                 int32_t pending_token) const;

  std::string name_;
  ChatTable table_;
};

}  // namespace vivarium::engine
