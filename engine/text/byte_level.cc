#include "engine/text/byte_level.h"

#include <array>

#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, 256> char_of_byte{};
  std::array<int16_t, 0x144> byte_of_char{};  // -1: none

  constexpr Alphabet() {
    byte_of_char.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t code = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
      char_of_byte[byte] = code;
      byte_of_char[code] = static_cast<int16_t>(byte);
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

char32_t CharOfByte(uint8_t byte) { return kAlphabet.char_of_byte[byte]; }

std::optional<uint8_t> ByteOfChar(char32_t code) {
  if (code >= kAlphabet.byte_of_char.size() || kAlphabet.byte_of_char[code] < 0) {
    return std::nullopt;
  }
  return static_cast<uint8_t>(kAlphabet.byte_of_char[code]);
}

std::string WriteByteAlphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) AppendUtf8(CharOfByte(static_cast<uint8_t>(byte)), &text);
  return text;
}

std::optional<std::string> ReadByteAlphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    if (c.status != Utf8Status::kValid) return std::nullopt;
    const std::optional<uint8_t> byte = ByteOfChar(c.code);
    if (!byte.has_value()) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
    pos += c.num_bytes;
  }
  return bytes;
}

}  // namespace vivarium::engine
