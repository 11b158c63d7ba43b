#include "engine/text/added_tokens.h"

#include <utility>

#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

// The last character of `text`, which must be valid UTF-8 and not empty.
Utf8Char LastChar(std::string_view text) {
  size_t pos = text.size() - 1;
  while ((static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80) --pos;
  return DecodeUtf8(text.substr(pos));
}

std::string_view StripLeft(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text);
    if (!IsWhiteSpace(c.code)) break;
    text.remove_prefix(c.num_bytes);
  }
  return text;
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = LastChar(text);
    if (!IsWhiteSpace(c.code)) break;
    text.remove_suffix(c.num_bytes);
  }
  return text;
}

bool IsSingleWord(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWordChar(LastChar(text.substr(0, begin)).code)) return false;
  return end == text.size() || !IsWordChar(DecodeUtf8(text.substr(end)).code);
}

}  // namespace

void FragmentList::AddText(std::string_view text) {
  if (strip_next_) text = StripLeft(text);
  if (text.empty()) return;
  strip_next_ = false;
  if (fragments_.empty() || fragments_.back().id >= 0) fragments_.emplace_back();
  fragments_.back().text.append(text);
}

void FragmentList::AddToken(const AddedToken& token) {
  if (token.lstrip && !fragments_.empty() && fragments_.back().id < 0) {
    std::string& before = fragments_.back().text;
    before.resize(StripRight(before).size());
    if (before.empty()) fragments_.pop_back();
  }
  fragments_.push_back({token.id, ""});
  strip_next_ = token.rstrip;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens,
                                     const std::vector<std::string>& contents)
    : tokens_(std::move(tokens)), nodes_(1) {
  root_children_.fill(kNone);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    int32_t node = 0;
    for (const char c : contents[i]) {
      const auto byte = static_cast<uint8_t>(c);
      int32_t child = Child(node, byte);
      if (child == kNone) {
        child = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        if (node == 0) {
          root_children_[byte] = child;
        } else {
          children_[static_cast<uint64_t>(node) << 8 | byte] = child;
        }
      }
      node = child;
    }
    if (node != 0) nodes_[node].token = static_cast<int32_t>(i);
  }
}

int32_t AddedTokenMatcher::Child(int32_t node, uint8_t byte) const {
  if (node == 0) return root_children_[byte];
  const auto it = children_.find(static_cast<uint64_t>(node) << 8 | byte);
  return it == children_.end() ? kNone : it->second;
}

int32_t AddedTokenMatcher::FindLongest(std::string_view text, size_t pos, size_t* num_bytes) const {
  int32_t token = kNone;
  int32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    node = Child(node, static_cast<uint8_t>(text[i]));
    if (node == kNone) break;
    if (nodes_[node].token == kNone) continue;
    token = nodes_[node].token;
    *num_bytes = i + 1 - pos;
  }
  return token;
}

void AddedTokenMatcher::Split(std::string_view text, FragmentList* out) const {
  size_t copied = 0;
  size_t pos = 0;
  while (pos < text.size()) {
    size_t num_bytes = 0;
    const int32_t token = FindLongest(text, pos, &num_bytes);
    if (token == kNone) {
      ++pos;
      continue;
    }
    const size_t end = pos + num_bytes;
    if (!tokens_[token].single_word || IsSingleWord(text, pos, end)) {
      out->AddText(text.substr(copied, pos - copied));
      out->AddToken(tokens_[token]);
      copied = end;
    }
    pos = end;
  }
  out->AddText(text.substr(copied));
}

}  // namespace vivarium::engine
