// Real tokenizers: known encodings, and there and back on random text.
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

std::vector<std::string> ReadTexts(const std::string& path) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string file = ReadFileOrDie(path);
  std::vector<std::string> texts;
  size_t begin = 0;
  for (size_t end = file.find(separator); end != std::string::npos;
       end = file.find(separator, begin)) {
    texts.push_back(file.substr(begin, end - begin));
    begin = end + separator.size();
  }
  if (begin < file.size()) texts.push_back(file.substr(begin));
  return texts;
}

std::vector<std::vector<int32_t>> ReadIds(const std::string& path) {
  std::istringstream file(ReadFileOrDie(path));
  std::vector<std::vector<int32_t>> ids;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    ids.emplace_back();
    for (int32_t id; fields >> id;) ids.back().push_back(id);
  }
  return ids;
}

class KnownEncodings : public testing::TestWithParam<const char*> {};

TEST_P(KnownEncodings, AreExact) {
  const std::string dir = TokenizerDir(GetParam());
  const auto tokenizer = LoadOrDie(dir);
  const std::vector<std::string> texts = ReadTexts(dir + "/vectors.inp");
  const std::vector<std::vector<int32_t>> expected = ReadIds(dir + "/vectors.out");
  ASSERT_EQ(texts.size(), expected.size());
  ASSERT_GT(texts.size(), 40u);
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = tokenizer->Encode(texts[i], {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, expected[i]) << "text " << i << ": '" << texts[i] << "'";
  }
}

TEST_P(KnownEncodings, DecodeOfEncodeIsTheNormalizedText) {
  const auto tokenizer = LoadOrDie(TokenizerDir(GetParam()));
  const bool nfc = std::string(GetParam()) == "neox";
  std::mt19937_64 rng(20240601);
  for (int round = 0; round < 3000; ++round) {
    const std::string text = RandomText(&rng, static_cast<int>(rng() % 80));
    const auto ids = tokenizer->Encode(text, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    ASSERT_EQ(tokenizer->Decode(*ids, false), nfc ? ReferenceNfc(text) : text) << "round " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(All, KnownEncodings, testing::Values("gpt2", "neox"),
                         [](const auto& info) { return std::string(info.param); });

// Pre-tokenizers of other models, every split behavior and added tokens of every kind, in place of
// GPT-NeoX's: the ids are those of the Hugging Face library.
TEST(RealTokenizers, OtherPipelinesAgreeWithTheReference) {
  const nlohmann::json data = nlohmann::json::parse(ReadFileOrDie(TokenizerDir("pipelines.json")));
  const nlohmann::json neox =
      nlohmann::json::parse(ReadFileOrDie(TokenizerDir("neox") + "/tokenizer.json"));
  ASSERT_GE(data["pipelines"].size(), 14u);
  for (const auto& [name, pipeline] : data["pipelines"].items()) {
    nlohmann::json spec = neox;
    spec["pre_tokenizer"] = pipeline["pre_tokenizer"];
    spec["model"]["ignore_merges"] = pipeline["ignore_merges"];
    for (const nlohmann::json& token : data["added_tokens"]) spec["added_tokens"].push_back(token);
    const auto tokenizer = FromJsonOrDie(spec.dump());
    ASSERT_EQ(data["texts"].size(), data["ids"][name].size());
    for (size_t i = 0; i < data["texts"].size(); ++i) {
      const std::string text = data["texts"][i];
      const auto ids = tokenizer->Encode(text, {.parse_special = true});
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, data["ids"][name][i].get<std::vector<int32_t>>()) << name << ": " << text;
    }
  }
}

TEST(RealTokenizers, SpecialTokensAndSizes) {
  const auto gpt2 = LoadOrDie(TokenizerDir("gpt2"));
  EXPECT_EQ(gpt2->vocab_size(), 50257);
  EXPECT_TRUE(gpt2->IsSpecial(50256));
  EXPECT_EQ(gpt2->TokenBytes(50256), "<|endoftext|>");
  EXPECT_EQ(gpt2->TokenToId("<|endoftext|>"), 50256);
  const auto neox = LoadOrDie(TokenizerDir("neox"));
  EXPECT_EQ(neox->vocab_size(), 50277);
  EXPECT_TRUE(neox->IsSpecial(0));
  EXPECT_FALSE(neox->IsSpecial(50254));  // added, but only white space
  EXPECT_EQ(neox->TokenBytes(50277), "");
  EXPECT_EQ(neox->TokenBytes(-1), "");
  // The file's hash is part of stored states: a change of it cuts them off from their model.
  EXPECT_EQ(neox->content_hash().size(), 32u);
  EXPECT_NE(neox->content_hash(), gpt2->content_hash());
}

}  // namespace
}  // namespace vivarium::engine
