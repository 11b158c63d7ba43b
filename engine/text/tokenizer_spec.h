// What a tokenizer.json and a tokenizer_config.json say, as checked plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::engine {

inline constexpr size_t kMaxPreTokenizerSteps = 16;
inline constexpr size_t kMaxPatternBytes = 4096;  // of one Split pattern

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
  bool normalized = false;   // found in the normalized text
};

// What becomes of the matches of a splitting pattern.
enum class SplitBehavior : uint8_t {
  kRemoved,             // dropped
  kIsolated,            // each match a piece of its own
  kMergedWithPrevious,  // the match joins the piece before it
  kMergedWithNext,      // or the one after it
  kContiguous,          // runs of matches are one piece
};

struct PreTokenizerStep {
  enum class Kind : uint8_t { kByteLevel, kSplitRegex, kSplitString, kDigits, kPunctuation };
  Kind kind = Kind::kByteLevel;
  // kByteLevel
  bool add_prefix_space = false;
  bool use_regex = true;
  // kSplitRegex, kSplitString
  std::string pattern;
  bool invert = false;  // what lies between the matches is the match
  // all but kByteLevel
  SplitBehavior behavior = SplitBehavior::kIsolated;
};

// The pair of tokens that becomes `result`; the rank is the index in TokenizerSpec::merges.
struct Merge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;
};

struct TokenizerSpec {
  // Keys as in the file (bytes written in the byte alphabet), ids unique and in [0, kMaxVocab).
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<Merge> merges;
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  bool nfc = false;            // the normalizer
  std::vector<PreTokenizerStep> pre_tokenizer;  // exactly one is kByteLevel
  std::vector<AddedToken> added_tokens;         // contents and ids unique
  std::optional<int32_t> template_bos;          // the post-processor's first token
};

struct TokenizerConfig {
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<bool> add_bos_token;
  std::vector<std::string> named_tokens;  // bos, eos, pad ...: all that act as control tokens
  std::string chat_template;
};

// Errors: InvalidArgument (malformed: place, expected, found) or Unimplemented (a kind that is not
// supported, named), as Tokenizer::Load says.
absl::StatusOr<TokenizerSpec> ParseTokenizerJson(std::string_view text);
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view text);

// Why `spec` contradicts itself (an id or content used twice, a special token that BPE could make);
// part of ParseTokenizerJson.
absl::Status CheckAddedTokens(const TokenizerSpec& spec);

// XXH3-128, in hex, of everything in `spec` but template_bos, in one canonical order.
std::string HashTokenizerSpec(const TokenizerSpec& spec);

}  // namespace vivarium::engine
