// Encoding and decoding: special and added tokens, parts, BOS, bounds.
#include "engine/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            bool parse_special = false, bool add_bos = false) {
  const auto ids = tokenizer.Encode(text, {.parse_special = parse_special, .add_bos = add_bos});
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(std::vector<int32_t>());
}

const Tokenizer& Small() {
  static const Tokenizer& tokenizer = *FromJsonOrDie(SmallTokenizerJson().dump()).release();
  return tokenizer;
}

TEST(Tokenizer, EncodesAndDecodes) {
  EXPECT_THAT(Encode(Small(), "hello the worhe"), ElementsAre(259, 262, 266, 256));
  EXPECT_THAT(Encode(Small(), "aaaaaaa"), ElementsAre(264, 263, 'a'));
  EXPECT_THAT(Encode(Small(), "\u00e4z"), ElementsAre(267, 'z'));
  EXPECT_THAT(Encode(Small(), ""), ElementsAre());
  const std::vector<int32_t> ids = {259, 300, ' ', 267};
  EXPECT_EQ(Small().Decode(ids, false), "hello<|end|> \u00e4");
  EXPECT_EQ(Small().Decode(ids, true), "hello \u00e4");
  EXPECT_EQ(Small().vocab_size(), 302);
  EXPECT_EQ(Small().TokenToId("hello"), 259);
  EXPECT_EQ(Small().TokenToId(" the"), 262);  // by its bytes
  EXPECT_EQ(Small().TokenToId("<|end|>"), 300);
  EXPECT_EQ(Small().TokenToId("nope"), std::nullopt);
  EXPECT_EQ(Small().TokenBytes(262), " the");
  EXPECT_EQ(Small().TokenBytes(299), "");  // a gap in the ids
  EXPECT_TRUE(Small().IsSpecial(300));
  for (const int32_t id : {-1, 0, 299, 302, INT32_MAX}) EXPECT_FALSE(Small().IsSpecial(id)) << id;
}

TEST(Tokenizer, DecodeIsAlwaysUtf8) {
  EXPECT_EQ(Small().Decode(std::vector<int32_t>{'a', 0xC3, 'b', 0xFF, 0xE2, 0x82}, false),
            "a\uFFFDb\uFFFD\uFFFD");
  EXPECT_EQ(Small().Decode(std::vector<int32_t>{0xE2, 300, 0x82, 0xAC}, true), "\u20AC");
  EXPECT_EQ(Small().Decode(std::vector<int32_t>{-5, 299, 4000}, false), "");
}

TEST(Tokenizer, SpecialTokensOnlyWhereAllowed) {
  EXPECT_THAT(Encode(Small(), "hello<|end|> the", true), ElementsAre(259, 300, 262));
  EXPECT_THAT(Encode(Small(), "hello<|end|> the", false),
              ElementsAre(259, '<', '|', 'e', 'n', 'd', '|', '>', 262));
  EXPECT_THAT(Encode(Small(), "<|end|><|user|>", true), ElementsAre(300, 301));
  EXPECT_THAT(Encode(Small(), "<|end|<|end|>", true),
              ElementsAre('<', '|', 'e', 'n', 'd', '|', 300));
}

// Whatever the text and the tokenizer's tricks, untrusted text has no special ids.
TEST(Tokenizer, OrdinaryTextHasNoSpecialIds) {
  json tricky = SmallTokenizerJson();
  tricky["model"]["ignore_merges"] = true;
  tricky["model"]["vocab"]["<|end|>"] = 300;
  tricky["model"]["vocab"]["<|"] = 310;
  tricky["model"]["vocab"]["|>"] = 311;
  tricky["model"]["merges"].push_back("< |");
  tricky["model"]["merges"].push_back("| >");
  AddToken(&tricky, 310, "<|", {{"special", true}});
  AddToken(&tricky, 312, "<|us", {{"special", false}});
  const auto tokenizer = FromJsonOrDie(tricky.dump());
  std::mt19937_64 rng(1);
  const std::vector<std::string> pieces = {"<|end|>", "<|user|>", "<|", "|>", "end", " ", "a"};
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (size_t n = rng() % 8; n > 0; --n) text += pieces[rng() % pieces.size()];
    for (const int32_t id : Encode(*tokenizer, text))
      ASSERT_FALSE(tokenizer->IsSpecial(id)) << text;
    ASSERT_EQ(tokenizer->Decode(Encode(*tokenizer, text), false), text);
    ASSERT_EQ(tokenizer->Decode(Encode(*tokenizer, text, true), false), text);
  }
}

// The Kelvin sign normalizes to K: text that only normalizes to a control token is not one.
TEST(Tokenizer, NormalizationMakesNoSpecialTokens) {
  json spec = SmallTokenizerJson();
  spec["normalizer"] = {{"type", "NFC"}};
  AddToken(&spec, 310, "<K>", {{"special", true}, {"normalized", true}});
  AddToken(&spec, 311, "[K]", {{"special", false}, {"normalized", true}});
  const auto tokenizer = FromJsonOrDie(spec.dump());
  EXPECT_THAT(Encode(*tokenizer, "<K>", true), ElementsAre(310));
  EXPECT_THAT(Encode(*tokenizer, "<\u212A>", true), ElementsAre('<', 'K', '>'));
  EXPECT_THAT(Encode(*tokenizer, "<\u212A>", false), ElementsAre('<', 'K', '>'));
  EXPECT_THAT(Encode(*tokenizer, "[\u212A]", false), ElementsAre(311));  // an ordinary one is found
}

TEST(Tokenizer, AddedTokens) {
  json spec = SmallTokenizerJson();
  AddToken(&spec, 310, "foo", {});
  AddToken(&spec, 311, "foobar", {});
  AddToken(&spec, 312, "[word]", {{"single_word", true}});
  AddToken(&spec, 313, "[left]", {{"lstrip", true}});
  AddToken(&spec, 314, "[right]", {{"rstrip", true}, {"special", true}});
  AddToken(&spec, 315, "\u00e4\u00f6", {});
  AddToken(&spec, 316, "  ", {});
  const auto tokenizer = FromJsonOrDie(spec.dump());
  const auto encode = [&](std::string_view text) { return Encode(*tokenizer, text, true); };
  EXPECT_THAT(encode("xfoofoobarfoobax"), ElementsAre('x', 310, 311, 310, 'b', 'a', 'x'));
  EXPECT_THAT(encode("[word]"), ElementsAre(312));
  EXPECT_THAT(encode("-[word]-"), ElementsAre('-', 312, '-'));
  EXPECT_THAT(encode("a[word]"), ElementsAre('a', '[', 'w', 265, 'd', ']'))
      << "a word character touches it";
  EXPECT_EQ(encode("[word]\u00e4").front(), '[');
  EXPECT_THAT(encode("a \n[left] b"), ElementsAre('a', 313, ' ', 'b'));
  EXPECT_THAT(encode("[left]"), ElementsAre(313));
  EXPECT_THAT(encode("a [right] \n\u3000b"), ElementsAre('a', ' ', 314, 'b'));
  EXPECT_THAT(encode("[right]   "), ElementsAre(314));
  EXPECT_THAT(encode("[right] [left]"), ElementsAre(314, 313));
  EXPECT_THAT(encode("\u00e4\u00e4\u00f6"), ElementsAre(267, 315));
  EXPECT_THAT(encode("a   b"), ElementsAre('a', 316, ' ', 'b'));
}

TEST(Tokenizer, PartsAreOneTextOfDifferentTrust) {
  using Part = Tokenizer::TextPart;
  const auto encode = [](const std::vector<Part>& parts) {
    const auto ids = Small().EncodeParts(parts);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.value_or(std::vector<int32_t>());
  };
  EXPECT_THAT(encode({{"<|user|>hel", true}, {"lo", false}, {"<|end|>", true}}),
              ElementsAre(301, 259, 300));
  EXPECT_THAT(encode({{"<|user|>", false}}), testing::Each(testing::Lt(256)));
  EXPECT_THAT(encode({{"<|us", true}, {"er|>", true}}), testing::Each(testing::Lt(256)));
  EXPECT_THAT(encode({{"<|us", true}, {"er|>", false}}), testing::Each(testing::Lt(256)));
  EXPECT_THAT(encode({}), ElementsAre());
  const auto invalid = Small().EncodeParts(std::vector<Part>{{"abc", true}, {"d\xFF", true}});
  EXPECT_THAT(std::string(invalid.status().message()), HasSubstr("at byte 4"));
}

TEST(Tokenizer, BosIsAddedOnRequest) {
  EXPECT_TRUE(absl::IsFailedPrecondition(Small().Encode("a", {.add_bos = true}).status()));
  const auto tokenizer = FromJsonOrDie(SmallTokenizerJson().dump(), R"({"bos_token": "<|user|>"})");
  EXPECT_EQ(tokenizer->bos_token_id(), 301);
  EXPECT_FALSE(tokenizer->add_bos_token());
  EXPECT_THAT(Encode(*tokenizer, "a", false, true), ElementsAre(301, 'a'));
  EXPECT_THAT(Encode(*tokenizer, "", false, true), ElementsAre(301));
  EXPECT_THAT(Encode(*tokenizer, "a"), ElementsAre('a'));
}

TEST(Tokenizer, RefusesInvalidUtf8) {
  for (const auto& [text, offset] :
       std::vector<std::pair<std::string, std::string>>{{"\xFF", "byte 0"},
                                                        {"ab\xC3", "byte 2"},
                                                        {"a\xED\xA0\x80", "byte 1"},
                                                        {"\u00e4\xE2\x82z", "byte 2"}}) {
    const absl::Status status = Small().Encode(text, {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(offset));
  }
  EXPECT_THAT(Encode(Small(), std::string("\0", 1)), ElementsAre(0));
}

TEST(Tokenizer, EncodeBound) {
  std::string text;
  text.reserve(kMaxEncodeBytes + 1);
  while (text.size() < kMaxEncodeBytes) text += "hello the";
  text.resize(kMaxEncodeBytes);
  EXPECT_TRUE(Small().Encode(text, {}).ok());
  text += 'x';
  const absl::Status status = Small().Encode(text, {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("33554432"));
  const std::vector<Tokenizer::TextPart> parts = {{"x"}, {std::string_view(text).substr(1)}};
  EXPECT_FALSE(Small().EncodeParts(parts).ok());
}

TEST(Tokenizer, NamesAByteTheVocabularyLacks) {
  json spec = SmallTokenizerJson();
  spec["model"]["vocab"].erase("z");
  const auto tokenizer = FromJsonOrDie(spec.dump());
  const absl::Status status = tokenizer->Encode("az", {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("0x7a"));
}

// One tokenizer, many threads (run under ThreadSanitizer).
TEST(Tokenizer, ManyThreads) {
  const std::string text = "hello the wor \u00e4 <|end|> hell";
  const std::vector<int32_t> expected = Encode(Small(), text, true);
  std::vector<std::thread> threads;
  std::vector<int> num_equal(4, 0);
  for (int& count : num_equal) {
    threads.emplace_back([&count, &text, &expected] {
      for (int i = 0; i < 500; ++i) {
        const auto ids = Small().Encode(text, {.parse_special = true});
        if (ids.ok() && *ids == expected && Small().Decode(*ids, false) == text) ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_equal, testing::Each(500));
}

}  // namespace
}  // namespace vivarium::engine
