#include "tests/text/text_testing.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include "engine/text/byte_level.h"
#include "engine/text/utf8.h"
#include "tests/support/test_environment.h"

namespace vivarium::engine {
namespace {

std::unique_ptr<Tokenizer> TakeOrDie(absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer) {
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    std::abort();
  }
  return *std::move(tokenizer);
}

}  // namespace

std::string TokenizerDir(const std::string& name) {
  return test::RootDir() + "/tests/data/tokenizer/" + name;
}

std::string ReadFileOrDie(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::cerr << path << ": cannot be read\n";
    std::abort();
  }
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::unique_ptr<Tokenizer> LoadOrDie(const std::string& dir) {
  return TakeOrDie(Tokenizer::Load(dir));
}

std::unique_ptr<Tokenizer> FromJsonOrDie(const std::string& tokenizer_json,
                                         const std::string& config_json) {
  return TakeOrDie(Tokenizer::FromJson(tokenizer_json, config_json));
}

nlohmann::json SmallTokenizerJson() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) {
    vocab[WriteByteAlphabet(std::string(1, static_cast<char>(byte)))] = byte;
  }
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"h", "e"},   {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"Ġ", "w"},   {"t", "he"},
      {"Ġ", "the"}, {"a", "a"}, {"aa", "aa"}, {"o", "r"},    {"Ġw", "or"}, {"Ã", "¤"}};
  nlohmann::json merges = nlohmann::json::array();
  int32_t next_id = 256;
  for (const auto& [left, right] : pairs) {
    vocab[left + right] = next_id++;
    merges.push_back(left + " " + right);
  }
  nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", nlohmann::json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}},
  };
  AddToken(&tokenizer, 300, "<|end|>", {{"special", true}});
  AddToken(&tokenizer, 301, "<|user|>", {{"special", true}});
  return tokenizer;
}

void AddToken(nlohmann::json* tokenizer, int32_t id, const std::string& content,
              const nlohmann::json& flags) {
  nlohmann::json token = {{"id", id}, {"content", content}};
  if (!flags.is_null()) token.update(flags);
  (*tokenizer)["added_tokens"].push_back(std::move(token));
}

std::string ReferenceNfc(const std::string& text) {
  constexpr std::string_view kLoneJamo = "\u11A7";
  std::string result;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(kLoneJamo, begin), text.size());
    utf8proc_uint8_t* part = nullptr;
    const utf8proc_ssize_t size =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + begin,
                     static_cast<utf8proc_ssize_t>(end - begin), &part,
                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    result.append(reinterpret_cast<char*>(part), static_cast<size_t>(size));
    std::free(part);
    if (end < text.size()) result += kLoneJamo;
    begin = end + kLoneJamo.size();
  }
  return result;
}

char32_t RandomChar(std::mt19937_64* rng) {
  const auto below = [rng](uint32_t n) { return static_cast<uint32_t>((*rng)() % n); };
  constexpr char32_t kSpaces[] = {' ',  ' ',  ' ',    '\n',   '\t',   '\r',
                                  0x85, 0xA0, 0x2003, 0x2028, 0x3000, 0x180E};
  constexpr std::string_view kWords = "'sdmtlvre'S";
  switch (below(13)) {
    case 0:
      return below(0x80);
    case 1:
    case 2:
      return 'a' + below(26);
    case 3:
      return '0' + below(10);
    case 4:
    case 5:
      return kSpaces[below(std::size(kSpaces))];
    case 6:
      return static_cast<char32_t>(kWords[below(kWords.size())]);
    case 7:
      return 0xA0 + below(0x300 - 0xA0);
    case 8:
      return 0x300 + below(0x70);  // combining marks
    case 9:
      return below(2) == 0 ? 0x1100 + below(0x100) : 0xAC00 + below(11172);  // Hangul
    case 10:
      return 0x4E00 + below(0x5200);
    case 11:
      return 0x1F300 + below(0x400);
    default: {
      const char32_t code = below(0x110000);
      return code >= 0xD800 && code <= 0xDFFF ? U'\u0301' : code;
    }
  }
}

std::string RandomText(std::mt19937_64* rng, int num_chars) {
  std::string text;
  for (int i = 0; i < num_chars; ++i) AppendUtf8(RandomChar(rng), &text);
  return text;
}

}  // namespace vivarium::engine
