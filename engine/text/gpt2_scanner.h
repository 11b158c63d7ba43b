// The word pattern of GPT-2, by hand: what the ByteLevel pre-tokenizer splits with.
#pragma once

#include <cstddef>
#include <string_view>

namespace vivarium::engine {

// The pattern, as the GPT-2 paper's code has it. Matches cover any text without gaps.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The end of the word that begins at `begin` of `text` (valid UTF-8, begin < text.size()): the same
// as kGpt2Pattern's match there, several times as fast. Time is linear in the word's length plus
// one character.
size_t FindGpt2WordEnd(std::string_view text, size_t begin);

}  // namespace vivarium::engine
