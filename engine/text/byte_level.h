// The byte alphabet of GPT-2: in vocabulary files each byte is written as one printable character,
// so that any byte string is a readable JSON string.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vivarium::engine {

// The character that stands for `byte`: itself if printable Latin-1, else one of U+0100..U+0143.
char32_t CharOfByte(uint8_t byte);
// The byte `code` stands for; nothing if none.
std::optional<uint8_t> ByteOfChar(char32_t code);

// `bytes` written in the alphabet, and back; nothing if a character of `text` is outside of it.
std::string WriteByteAlphabet(std::string_view bytes);
std::optional<std::string> ReadByteAlphabet(std::string_view text);

}  // namespace vivarium::engine
