#include "engine/text/gpt2_scanner.h"

#include <array>
#include <cstdint>

#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

enum class CharClass : uint8_t { kSpace, kLetter, kNumber, kOther };

CharClass Classify(char32_t code) {
  if (IsWhiteSpace(code)) return CharClass::kSpace;
  if (IsLetter(code)) return CharClass::kLetter;
  if (IsNumber(code)) return CharClass::kNumber;
  return CharClass::kOther;
}

constexpr std::array<CharClass, 128> MakeAsciiTable() {
  std::array<CharClass, 128> table{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool number = c >= '0' && c <= '9';
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    table[c] = letter   ? CharClass::kLetter
               : number ? CharClass::kNumber
               : space  ? CharClass::kSpace
                        : CharClass::kOther;
  }
  return table;
}

constexpr std::array<CharClass, 128> kAsciiClass = MakeAsciiTable();

struct ClassAt {
  CharClass char_class;
  size_t num_bytes;
};

ClassAt ReadClass(std::string_view text, size_t pos) {
  const auto byte = static_cast<uint8_t>(text[pos]);
  if (byte < 0x80) return {kAsciiClass[byte], 1};
  const Utf8Char c = DecodeUtf8(text.substr(pos));
  return {Classify(c.code), c.num_bytes};
}

// The end of the run of `char_class` that `pos` is in or at.
size_t FindRunEnd(std::string_view text, size_t pos, CharClass char_class) {
  while (pos < text.size()) {
    const ClassAt at = ReadClass(text, pos);
    if (at.char_class != char_class) break;
    pos += at.num_bytes;
  }
  return pos;
}

// The length of the contraction at `pos`, an apostrophe; 0 if none.
size_t ContractionBytes(std::string_view text, size_t pos) {
  const char first = pos + 1 < text.size() ? text[pos + 1] : '\0';
  const char second = pos + 2 < text.size() ? text[pos + 2] : '\0';
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  return 0;
}

// A run of white space leaves its last character to the word that follows, if it has another.
size_t FindSpaceEnd(std::string_view text, size_t begin) {
  size_t last = begin;
  size_t pos = begin;
  while (pos < text.size()) {
    const ClassAt at = ReadClass(text, pos);
    if (at.char_class != CharClass::kSpace) return last > begin ? last : pos;
    last = pos;
    pos += at.num_bytes;
  }
  return pos;
}

}  // namespace

size_t FindGpt2WordEnd(std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    const size_t num_bytes = ContractionBytes(text, begin);
    if (num_bytes > 0) return begin + num_bytes;
  }
  const ClassAt first = ReadClass(text, begin);
  if (first.char_class != CharClass::kSpace) {
    return FindRunEnd(text, begin + first.num_bytes, first.char_class);
  }
  if (text[begin] == ' ' && begin + 1 < text.size()) {
    const ClassAt second = ReadClass(text, begin + 1);
    if (second.char_class != CharClass::kSpace) {
      return FindRunEnd(text, begin + 1 + second.num_bytes, second.char_class);
    }
  }
  return FindSpaceEnd(text, begin);
}

}  // namespace vivarium::engine
