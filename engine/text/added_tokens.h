// Finding added tokens in text, before it is split into words.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/text/tokenizer_spec.h"

namespace vivarium::engine {

// A part of a text: a token found in it, or (id < 0) ordinary text.
struct Fragment {
  int32_t id = -1;
  std::string text;
};

// Collects fragments in order, joining ordinary text, and does lstrip and rstrip.
class FragmentList {
 public:
  void AddText(std::string_view text);
  void AddToken(const AddedToken& token);
  const std::vector<Fragment>& fragments() const { return fragments_; }

 private:
  std::vector<Fragment> fragments_;
  bool strip_next_ = false;  // the last token takes the white space behind it
};

// A set of added tokens. Immutable; const methods are thread-safe.
class AddedTokenMatcher {
 public:
  // `tokens` may be found under `contents` (of the same size; normalized where that is asked for).
  AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& contents);

  bool empty() const { return tokens_.empty(); }

  // Splits `text` at the tokens in it, each the longest that begins at the leftmost place.
  void Split(std::string_view text, FragmentList* out) const;

 private:
  static constexpr int32_t kNone = -1;

  struct Node {
    int32_t token = kNone;  // index into tokens_
  };

  int32_t Child(int32_t node, uint8_t byte) const;
  // The longest token at `pos`, its length in *num_bytes; kNone if there is none.
  int32_t FindLongest(std::string_view text, size_t pos, size_t* num_bytes) const;

  std::vector<AddedToken> tokens_;
  // A trie; node 0 is the root. The root's children are an array, because it is asked at each byte.
  std::vector<Node> nodes_;
  std::array<int32_t, 256> root_children_;
  absl::flat_hash_map<uint64_t, int32_t> children_;  // node << 8 | byte
};

}  // namespace vivarium::engine
