// Damaged tokenizer files, with fixed seeds: an error or a tokenizer that works, never a crash.
#include <gtest/gtest.h>

#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "engine/text/text_stream.h"
#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;

constexpr int kNumByteMutations = 6000;
constexpr int kNumValueMutations = 6000;

// Every kind of part that is read.
json RichTokenizerJson() {
  json spec = SmallTokenizerJson();
  AddToken(&spec, 310, "[word]", {{"single_word", true}, {"lstrip", true}, {"rstrip", true}});
  AddToken(&spec, 311, "\u00e4\u00f6", {{"normalized", true}, {"special", false}});
  spec["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array({{{"type", "NFC"}}})}};
  spec["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       json::array({{{"type", "Split"},
                     {"pattern", {{"Regex", "(?i:'s)|[^\\r\\n\\p{L}]?\\p{L}+|\\s+(?!\\S)"}}},
                     {"behavior", "Isolated"},
                     {"invert", false}},
                    {{"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", "Removed"}},
                    {{"type", "Punctuation"}, {"behavior", "Contiguous"}},
                    {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}},
                    {{"type", "Digits"}, {"individual_digits", false}}})}};
  spec["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", json::array({{{"SpecialToken", {{"id", "<|user|>"}}}},
                                                    {{"Sequence", {{"id", "A"}}}}})},
                            {"special_tokens", {{"<|user|>", {{"ids", json::array({301})}}}}}};
  // The merges as pairs for a half, so that both forms are damaged.
  for (size_t i = 0; i < 6; ++i) {
    const std::string text = spec["model"]["merges"][i];
    const size_t space = text.find(' ');
    spec["model"]["merges"][i] = json::array({text.substr(0, space), text.substr(space + 1)});
  }
  return spec;
}

constexpr char kConfig[] = R"({
  "bos_token": {"content": "<|user|>", "lstrip": false}, "eos_token": "<|end|>",
  "pad_token": null, "unk_token": "[word]", "additional_special_tokens": ["<|x|>", {"content": "aa"}],
  "add_bos_token": true, "chat_template": [{"name": "default", "template": "t"}]})";

struct Counts {
  int num_loaded = 0;
  int num_refused = 0;
};

// Uses what was loaded, in every way.
void Exercise(const Tokenizer& tokenizer, std::mt19937_64* rng) {
  const std::string text =
      RandomText(rng, 12) + "<|end|>hello the-[word] 12's" + RandomText(rng, 4);
  for (const bool parse_special : {false, true}) {
    const auto ids = tokenizer.Encode(text, {.parse_special = parse_special});
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      ASSERT_GE(id, 0);
      ASSERT_LT(id, tokenizer.vocab_size());
      ASSERT_TRUE(parse_special || !tokenizer.IsSpecial(id));
    }
    tokenizer.Decode(*ids, parse_special);
    auto stream = TextStream::Create(&tokenizer, {"the", "l"}, "");
    ASSERT_TRUE(stream.ok());
    for (const int32_t id : *ids) {
      if (stream->Push(id).stopped) break;
    }
    stream->Flush();
  }
  ASSERT_TRUE(!tokenizer.add_bos_token() || tokenizer.bos_token_id().has_value());
}

void Try(const std::string& spec, const std::string& config, std::mt19937_64* rng, Counts* counts) {
  const auto tokenizer = Tokenizer::FromJson(spec, config);
  if (!tokenizer.ok()) {
    ++counts->num_refused;
    ASSERT_FALSE(tokenizer.status().message().empty());
    ASSERT_TRUE(absl::IsInvalidArgument(tokenizer.status()) ||
                absl::IsUnimplemented(tokenizer.status()))
        << tokenizer.status();
    return;
  }
  ++counts->num_loaded;
  Exercise(**tokenizer, rng);
}

std::string MutateBytes(std::string text, std::mt19937_64* rng) {
  for (size_t n = 1 + (*rng)() % 3; n > 0 && !text.empty(); --n) {
    const size_t pos = (*rng)() % text.size();
    const size_t num_bytes = 1 + (*rng)() % 16;
    switch ((*rng)() % 6) {
      case 0:
        text[pos] = static_cast<char>(text[pos] ^ (1 << ((*rng)() % 8)));
        break;
      case 1:
        text[pos] = "\"{}[]:,\\0-9eE\xFF\x00nt"[(*rng)() % 18];
        break;
      case 2:
        text.erase(pos, num_bytes);
        break;
      case 3:
        text.insert(pos, text.substr((*rng)() % text.size(), num_bytes));
        break;
      case 4:
        text.resize(pos);
        break;
      default:
        text.insert(pos, std::string(num_bytes, text[pos]));
        break;
    }
  }
  return text;
}

// Well-formed JSON with wrong values: reaches what is behind the JSON parser.
json MutateValues(json spec, const std::vector<std::string>& places, std::mt19937_64* rng) {
  const std::vector<json> values = {nullptr,
                                    true,
                                    false,
                                    0,
                                    1,
                                    -1,
                                    97,
                                    300,
                                    301,
                                    INT32_MAX,
                                    INT64_MIN,
                                    UINT64_MAX,
                                    1e308,
                                    0.5,
                                    "",
                                    "a",
                                    "\u0120",
                                    "<|end|>",
                                    "hello",
                                    "(",
                                    "[a",
                                    "(a|a)+b",
                                    "\\s*",
                                    "x*",
                                    "[\\s\\S]",
                                    "NFC",
                                    "Sequence",
                                    "ByteLevel",
                                    "Isolated",
                                    "MergedWithNext",
                                    json::array(),
                                    json::object(),
                                    json::array({"a", "b"}),
                                    json::array({1, 2}),
                                    std::string(5000, 'a'),
                                    std::string("\0", 1)};
  for (size_t n = 1 + (*rng)() % 3; n > 0; --n) {
    const json::json_pointer place(places[(*rng)() % places.size()]);
    if (!spec.contains(place)) continue;
    if ((*rng)() % 4 == 0 && spec.contains(json::json_pointer(places[0]))) {
      const json::json_pointer other(places[(*rng)() % places.size()]);
      if (spec.contains(other)) {
        const json copy = spec[other];
        spec[place] = copy;
      }
    } else if ((*rng)() % 6 == 0 && !place.empty()) {
      json& parent = spec[place.parent_pointer()];
      if (parent.is_object()) parent.erase(place.back());
    } else {
      spec[place] = values[(*rng)() % values.size()];
    }
  }
  return spec;
}

// All places of `value`, those of the vocabulary less often: it is most of the file.
void CollectPlaces(const json& value, const std::string& place, std::vector<std::string>* places) {
  places->push_back(place);
  if (!value.is_structured()) return;
  size_t count = 0;
  for (const auto& [key, child] : value.items()) {
    if (value.size() > 100 && ++count % 32 != 0) continue;
    CollectPlaces(child, (json::json_pointer(place) / key).to_string(), places);
  }
}

TEST(TokenizerFuzz, DamagedBytes) {
  std::mt19937_64 rng(0xB17E5);
  const std::string spec = RichTokenizerJson().dump();
  ASSERT_TRUE(Tokenizer::FromJson(spec, kConfig).ok())
      << Tokenizer::FromJson(spec, kConfig).status();
  Counts counts;
  for (int i = 0; i < kNumByteMutations && !HasFatalFailure(); ++i) {
    Try(MutateBytes(spec, &rng), kConfig, &rng, &counts);
    if (i % 4 == 0) Try(spec, MutateBytes(kConfig, &rng), &rng, &counts);
  }
  std::cout << counts.num_loaded << " loaded, " << counts.num_refused << " refused\n";
  EXPECT_GT(counts.num_loaded, 100);
  EXPECT_GT(counts.num_refused, 1000);
}

TEST(TokenizerFuzz, DamagedValues) {
  std::mt19937_64 rng(0x7A1E5);
  const json spec = RichTokenizerJson();
  const json config = json::parse(kConfig);
  std::vector<std::string> spec_places;
  std::vector<std::string> config_places;
  CollectPlaces(spec, "", &spec_places);
  CollectPlaces(config, "", &config_places);
  Counts counts;
  for (int i = 0; i < kNumValueMutations && !HasFatalFailure(); ++i) {
    Try(MutateValues(spec, spec_places, &rng).dump(), kConfig, &rng, &counts);
    if (i % 4 == 0) {
      Try(spec.dump(), MutateValues(config, config_places, &rng).dump(), &rng, &counts);
    }
  }
  std::cout << counts.num_loaded << " loaded, " << counts.num_refused << " refused\n";
  EXPECT_GT(counts.num_loaded, 500);
  EXPECT_GT(counts.num_refused, 1000);
}

}  // namespace
}  // namespace vivarium::engine
