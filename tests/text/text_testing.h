// Tokenizers and random texts for the tests of text/.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace vivarium::engine {

// A directory below tests/data/tokenizer ("gpt2", "neox").
std::string TokenizerDir(const std::string& name);
std::string ReadFileOrDie(const std::string& path);

// Loads or fails the test and aborts it.
std::unique_ptr<Tokenizer> LoadOrDie(const std::string& dir);
std::unique_ptr<Tokenizer> FromJsonOrDie(const std::string& tokenizer_json,
                                         const std::string& config_json = "");

// A tokenizer of the 256 bytes (id = byte), some merges ("he", "ll", "hell", "hello", " w", "the"
// ...) from id 256 on, and the special tokens <|end|> = 300 and <|user|> = 301.
nlohmann::json SmallTokenizerJson();
// Adds an added token to it; `flags` may be empty.
void AddToken(nlohmann::json* tokenizer, int32_t id, const std::string& content,
              const nlohmann::json& flags);

// NFC by utf8proc on the whole text, but for U+11A7, which utf8proc 2.8 loses after a Hangul
// syllable.
std::string ReferenceNfc(const std::string& text);

// Valid UTF-8 of `num_chars` characters, chosen to be troublesome: ASCII of all kinds, white space,
// apostrophes, digits, accents that compose, marks, CJK, Hangul, emoji, any assigned or not.
std::string RandomText(std::mt19937_64* rng, int num_chars);
char32_t RandomChar(std::mt19937_64* rng);

}  // namespace vivarium::engine
