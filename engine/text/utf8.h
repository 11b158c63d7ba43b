// UTF-8, strictly as the Unicode standard defines it (table 3-7: no surrogates, no overlong forms,
// nothing above U+10FFFF), and the few character classes that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vivarium::engine {

enum class Utf8Status : uint8_t {
  kValid,
  kIncomplete,  // the text ends inside a sequence that could still become valid
  kInvalid,
};

struct Utf8Char {
  Utf8Status status;
  // Bytes of the sequence; if not valid, of its maximal prefix that could begin one (at least 1).
  uint8_t num_bytes;
  char32_t code;  // if valid
};

// The sequence at the beginning of `text`, which must not be empty.
Utf8Char DecodeUtf8(std::string_view text);

// Where the first sequence that is not valid (or not complete) begins; nothing if all is well.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

void AppendUtf8(char32_t code, std::string* out);

// Appends `bytes` with each maximal invalid subsequence replaced by U+FFFD, but for an incomplete
// sequence at the very end: the number of its bytes (0 to 3) is returned, and the caller decides.
size_t AppendValidUtf8(std::string_view bytes, std::string* out);

// Unicode classes. White space is the property White_Space; letters and numbers are the general
// categories L* and N*; punctuation is P* and what ASCII counts as such; word characters are
// Alphabetic, marks, decimal digits and connectors.
bool IsWhiteSpace(char32_t code);
bool IsLetter(char32_t code);
bool IsNumber(char32_t code);
bool IsPunctuation(char32_t code);
bool IsWordChar(char32_t code);

}  // namespace vivarium::engine
