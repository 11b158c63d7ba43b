// Reading tokenizer.json and tokenizer_config.json: forms, defaults, errors, bounds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_spec.h"
#include "tests/support/temp_dir.h"
#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;
using testing::HasSubstr;

absl::Status LoadStatus(const json& spec, const std::string& config = "") {
  return Tokenizer::FromJson(spec.dump(), config).status();
}

absl::Status LoadChanged(const std::function<void(json*)>& change) {
  json spec = SmallTokenizerJson();
  change(&spec);
  return LoadStatus(spec);
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(TokenizerLoad, FromDirectory) {
  const test::TempDir dir;
  const absl::Status missing = Tokenizer::Load(dir.path()).status();
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_THAT(Message(missing), HasSubstr(dir.path() + "/tokenizer.json"));

  test::WriteFile(dir.File("tokenizer.json"), SmallTokenizerJson().dump(1));
  auto tokenizer = LoadOrDie(dir.path());
  EXPECT_EQ(tokenizer->chat_template(), "");
  EXPECT_EQ(tokenizer->bos_token_id(), std::nullopt);
  EXPECT_EQ(tokenizer->eos_token_id(), std::nullopt);

  test::WriteFile(
      dir.File("tokenizer_config.json"),
      R"({"eos_token": {"content": "<|end|>", "lstrip": false}, "chat_template": "one"})");
  tokenizer = LoadOrDie(dir.path());
  EXPECT_EQ(tokenizer->chat_template(), "one");
  EXPECT_EQ(tokenizer->eos_token_id(), 300);

  test::WriteFile(dir.File("chat_template.jinja"), "two");
  EXPECT_EQ(LoadOrDie(dir.path())->chat_template(), "two");

  test::WriteFile(dir.File("tokenizer_config.json"), "{");
  EXPECT_THAT(Message(Tokenizer::Load(dir.path()).status()),
              HasSubstr(dir.path() + "/tokenizer_config.json: not valid JSON"));
}

TEST(TokenizerLoad, FileSizeBounds) {
  const test::TempDir dir;
  const std::string spec = SmallTokenizerJson().dump();
  // White space behind the value makes the file as long as one likes.
  test::WriteFile(dir.File("tokenizer.json"),
                  spec + std::string(kMaxTokenizerFileBytes - spec.size(), ' '));
  EXPECT_TRUE(Tokenizer::Load(dir.path()).ok());
  test::WriteFile(dir.File("tokenizer.json"),
                  spec + std::string(kMaxTokenizerFileBytes - spec.size() + 1, ' '));
  const absl::Status status = Tokenizer::Load(dir.path()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("67108864"));

  test::WriteFile(dir.File("tokenizer.json"), spec);
  test::WriteFile(dir.File("tokenizer_config.json"),
                  "{}" + std::string(kMaxTokenizerConfigBytes - 2, ' '));
  EXPECT_TRUE(Tokenizer::Load(dir.path()).ok());
  test::WriteFile(dir.File("tokenizer_config.json"),
                  "{}" + std::string(kMaxTokenizerConfigBytes - 1, ' '));
  EXPECT_FALSE(Tokenizer::Load(dir.path()).ok());
}

TEST(TokenizerLoad, DepthBound) {
  const auto nested = [](int depth) {
    json spec = SmallTokenizerJson();
    json deep = 1;
    for (int i = 0; i < depth; ++i) deep = json::array({deep});
    spec["unused"] = deep;
    return spec;
  };
  EXPECT_TRUE(LoadStatus(nested(kMaxTokenizerJsonDepth - 1)).ok());
  const absl::Status status = LoadStatus(nested(kMaxTokenizerJsonDepth));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(Message(status), HasSubstr("nested 65 deep, at most 64"));
  const std::string bomb(1 << 20, '[');
  EXPECT_TRUE(absl::IsInvalidArgument(Tokenizer::FromJson(bomb, "").status()));
  // Brackets in strings are no nesting.
  EXPECT_TRUE(
      LoadChanged([](json* spec) { (*spec)["note"] = std::string(100, '[') + "\"\\"; }).ok());
}

TEST(TokenizerLoad, MergesInBothForms) {
  json pairs = SmallTokenizerJson();
  json& merges = pairs["model"]["merges"];
  for (json& merge : merges) {
    const std::string text = merge;
    const size_t space = text.find(' ');
    merge = json::array({text.substr(0, space), text.substr(space + 1)});
  }
  json versioned = SmallTokenizerJson();
  versioned["model"]["merges"].insert(versioned["model"]["merges"].begin(), "#version: 0.2");
  const auto as_text = FromJsonOrDie(SmallTokenizerJson().dump());
  const auto as_pairs = FromJsonOrDie(pairs.dump());
  EXPECT_EQ(*as_text->Encode("hello the worhell", {}), *as_pairs->Encode("hello the worhell", {}));
  EXPECT_EQ(as_text->content_hash(), as_pairs->content_hash());
  EXPECT_EQ(as_text->content_hash(), FromJsonOrDie(versioned.dump())->content_hash());
  for (const json& bad : {json("ab"), json("a b c"), json(1), json::array({"a"}),
                          json::array({"a", 1}), json::array({"a", "b", "c"}), json()}) {
    const absl::Status status =
        LoadChanged([&bad](json* spec) { (*spec)["model"]["merges"][2] = bad; });
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
    EXPECT_THAT(Message(status), HasSubstr("model.merges[2]"));
  }
  EXPECT_THAT(Message(LoadChanged([](json* spec) { (*spec)["model"]["merges"].push_back("z z"); })),
              HasSubstr("token 'zz' is not in model.vocab"));
}

TEST(TokenizerLoad, HashIsOverMeaning) {
  const std::string hash = FromJsonOrDie(SmallTokenizerJson().dump())->content_hash();
  EXPECT_EQ(hash.size(), 32u);
  EXPECT_EQ(hash.find_first_not_of("0123456789abcdef"), std::string::npos);
  const auto changed = [](const std::function<void(json*)>& change) {
    json spec = SmallTokenizerJson();
    change(&spec);
    return FromJsonOrDie(spec.dump(2))->content_hash();
  };
  // Layout, written defaults and what has no meaning here leave it.
  EXPECT_EQ(hash, changed([](json*) {}));
  EXPECT_EQ(hash, changed([](json* s) { (*s)["pre_tokenizer"]["use_regex"] = true; }));
  EXPECT_EQ(hash, changed([](json* s) { (*s)["pre_tokenizer"]["trim_offsets"] = false; }));
  EXPECT_EQ(hash, changed([](json* s) { (*s)["added_tokens"][0]["lstrip"] = false; }));
  EXPECT_EQ(hash, changed([](json* s) { (*s)["version"] = "2"; }));
  EXPECT_EQ(
      hash,
      FromJsonOrDie(SmallTokenizerJson().dump(), R"({"eos_token": "<|end|>"})")->content_hash());
  // Everything with meaning changes it, and each in its own way.
  std::vector<std::string> hashes = {hash};
  const std::vector<std::function<void(json*)>> changes = {
      [](json* s) { (*s)["model"]["vocab"]["zzz"] = 299; },
      [](json* s) { std::swap((*s)["model"]["vocab"]["x"], (*s)["model"]["vocab"]["y"]); },
      [](json* s) { std::swap((*s)["model"]["merges"][0], (*s)["model"]["merges"][1]); },
      [](json* s) { (*s)["model"]["merges"].erase(11); },
      [](json* s) { (*s)["model"]["ignore_merges"] = true; },
      [](json* s) {
        (*s)["normalizer"] = {{"type", "NFC"}};
      },
      [](json* s) { (*s)["pre_tokenizer"]["use_regex"] = false; },
      [](json* s) { (*s)["pre_tokenizer"]["add_prefix_space"] = true; },
      [](json* s) { (*s)["added_tokens"][0]["content"] = "<|END|>"; },
      [](json* s) { (*s)["added_tokens"][0]["id"] = 302; },
      [](json* s) { (*s)["added_tokens"][0]["special"] = false; },
      [](json* s) { (*s)["added_tokens"][0]["lstrip"] = true; },
      [](json* s) { (*s)["added_tokens"][0]["rstrip"] = true; },
      [](json* s) { (*s)["added_tokens"][0]["single_word"] = true; },
      [](json* s) { (*s)["added_tokens"][0]["normalized"] = true; },
  };
  for (const auto& change : changes) hashes.push_back(changed(change));
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::adjacent_find(hashes.begin(), hashes.end()), hashes.end());
}

TEST(TokenizerLoad, UnsupportedKindsAreNamed) {
  const auto expect = [](const std::function<void(json*)>& change, const std::string& name) {
    const absl::Status status = LoadChanged(change);
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(name));
    EXPECT_THAT(Message(status), HasSubstr("tokenizer.json: "));
  };
  const json lowercase = {{"type", "Lowercase"}};
  expect([](json* s) { (*s)["model"]["type"] = "WordPiece"; }, "'WordPiece'");
  expect(
      [](json* s) {
        (*s)["model"] = {{"type", "Unigram"}, {"vocab", json::array()}};
      },
      "'Unigram'");
  expect([](json* s) { (*s)["model"]["byte_fallback"] = true; }, "byte_fallback");
  expect([](json* s) { (*s)["model"]["dropout"] = 0.1; }, "dropout");
  expect([](json* s) { (*s)["model"]["continuing_subword_prefix"] = "##"; }, "'##'");
  expect([](json* s) { (*s)["model"]["end_of_word_suffix"] = "</w>"; }, "'</w>'");
  expect([&](json* s) { (*s)["normalizer"] = lowercase; }, "'Lowercase'");
  expect(
      [&](json* s) {
        (*s)["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array({lowercase})}};
      },
      "'Lowercase'");
  expect([](json* s) { (*s)["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "'Metaspace'");
  expect([](json* s) { (*s)["pre_tokenizer"] = nullptr; }, "0 ByteLevel steps");
  expect(
      [](json* s) {
        (*s)["pre_tokenizer"] = {
            {"type", "Sequence"},
            {"pretokenizers", json::array({{{"type", "ByteLevel"}}, {{"type", "ByteLevel"}}})}};
      },
      "2 ByteLevel steps");
  expect(
      [](json* s) {
        (*s)["post_processor"] = {{"type", "RobertaProcessing"}};
      },
      "'RobertaProcessing'");
  expect([](json* s) { (*s)["decoder"] = {{"type", "Metaspace"}}; }, "'Metaspace'");
  expect(
      [](json* s) {
        (*s)["pre_tokenizer"] = {
            {"type", "Sequence"},
            {"pretokenizers",
             json::array(
                 {{{"type", "Split"}, {"pattern", {{"Regex", "\\w+"}}}, {"behavior", "Isolated"}},
                  {{"type", "ByteLevel"}}})}};
      },
      "'\\w'");
}

TEST(TokenizerLoad, MalformedFilesAreRefusedByPlace) {
  const auto expect = [](const std::function<void(json*)>& change, const std::string& text) {
    const absl::Status status = LoadChanged(change);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(text));
  };
  expect([](json* s) { *s = json::array(); }, "(root): expected an object, found array");
  expect([](json* s) { s->erase("model"); }, "(root).model: expected an object, found null");
  expect([](json* s) { (*s)["model"]["vocab"] = 3; }, "model.vocab: expected an object");
  expect([](json* s) { (*s)["model"].erase("merges"); }, "model.merges: expected an array");
  expect([](json* s) { (*s)["model"]["type"] = 1; }, "model.type: expected a string, found number");
  expect([](json* s) { (*s)["model"]["vocab"]["a"] = "x"; }, "model.vocab['a']");
  expect([](json* s) { (*s)["model"]["vocab"]["a"] = 1.5; }, "model.vocab['a']");
  expect([](json* s) { (*s)["model"]["vocab"]["a"] = -1; }, "id -1 is outside");
  expect([](json* s) { (*s)["model"]["vocab"]["a"] = UINT64_MAX; }, "outside");
  expect([](json* s) { (*s)["model"]["vocab"]["a"] = 98; }, "id 98 is used twice");
  expect([](json* s) { (*s)["model"]["vocab"][""] = 299; }, "empty token");
  expect([](json* s) { (*s)["model"]["ignore_merges"] = "yes"; }, "model.ignore_merges");
  expect([](json* s) { (*s)["added_tokens"] = 1; }, "added_tokens: expected an array");
  expect([](json* s) { (*s)["added_tokens"][1] = 1; }, "added_tokens[1]: expected an object");
  expect([](json* s) { (*s)["added_tokens"][1]["id"] = "301"; }, "added_tokens[1].id");
  expect([](json* s) { (*s)["added_tokens"][1]["id"] = 300; }, "id used twice");
  expect([](json* s) { (*s)["added_tokens"][1]["content"] = "<|end|>"; }, "content used twice");
  expect([](json* s) { (*s)["added_tokens"][1]["content"] = ""; }, "is empty");
  expect([](json* s) { (*s)["added_tokens"][1]["id"] = 97; }, "the vocabulary has 'a'");
  expect([](json* s) { AddToken(s, 310, "hello", {}); }, "the vocabulary has it as 259");
  expect([](json* s) { (*s)["added_tokens"][1]["special"] = 1; }, "added_tokens[1].special");
  expect(
      [](json* s) {
        AddToken(s, 97, "a", {{"special", true}});
      },
      "is special and the only token");
  expect([](json* s) { (*s)["normalizer"] = "NFC"; }, "normalizer: expected an object");
  expect([](json* s) { (*s)["normalizer"] = {{"type", "Sequence"}}; }, "normalizer.normalizers");
  expect([](json* s) { (*s)["pre_tokenizer"]["use_regex"] = 1; }, "pre_tokenizer.use_regex");
}

json WithSteps(const json& steps) {
  json spec = SmallTokenizerJson();
  spec["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
  return spec;
}

TEST(TokenizerLoad, SplitStepsAreChecked) {
  const auto split = [](const json& pattern, const json& behavior) {
    return LoadStatus(
        WithSteps(json::array({{{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}},
                               {{"type", "ByteLevel"}}})));
  };
  EXPECT_TRUE(split({{"Regex", "a+"}}, "Isolated").ok());
  EXPECT_TRUE(split({{"String", " "}}, "MergedWithNext").ok());
  EXPECT_THAT(Message(split({{"Regex", "(a"}}, "Isolated")), HasSubstr("pre_tokenizer step 0"));
  EXPECT_THAT(Message(split({{"Regex", "a"}}, "Sideways")), HasSubstr("'Sideways'"));
  EXPECT_THAT(Message(split({{"Regex", "a"}}, nullptr)), HasSubstr("behavior"));
  EXPECT_THAT(Message(split("a", "Isolated")), HasSubstr("pattern: expected an object"));
  EXPECT_THAT(Message(split({{"String", ""}}, "Isolated")), HasSubstr("expected 1 to 4096 bytes"));
  EXPECT_TRUE(split({{"String", std::string(kMaxPatternBytes, 'a')}}, "Isolated").ok());
  EXPECT_FALSE(split({{"String", std::string(kMaxPatternBytes + 1, 'a')}}, "Isolated").ok());
}

TEST(TokenizerLoad, NumberOfStepsAndDepthOfSequences) {
  json steps = json::array({{{"type", "ByteLevel"}}});
  while (steps.size() < kMaxPreTokenizerSteps) steps.push_back({{"type", "Digits"}});
  EXPECT_TRUE(LoadStatus(WithSteps(steps)).ok());
  steps.push_back({{"type", "Digits"}});
  EXPECT_THAT(Message(LoadStatus(WithSteps(steps))), HasSubstr("more than 16 steps"));
  json inner = {{"type", "ByteLevel"}};
  for (int depth = 1; depth <= 5; ++depth) {
    inner = {{"type", "Sequence"}, {"pretokenizers", json::array({inner})}};
    json spec = SmallTokenizerJson();
    spec["pre_tokenizer"] = inner;
    EXPECT_EQ(LoadStatus(spec).ok(), depth <= 4) << depth;
  }
}

TEST(TokenizerLoad, IdAndTokenBounds) {
  const auto with_id = [](int64_t id) {
    return LoadChanged([id](json* s) { (*s)["model"]["vocab"]["zzz"] = id; });
  };
  EXPECT_TRUE(with_id(kMaxVocab - 1).ok());
  EXPECT_THAT(Message(with_id(kMaxVocab)), HasSubstr("id 1048576 is outside of [0, 1048576)"));
  const auto with_content = [](size_t num_bytes) {
    return LoadChanged([num_bytes](json* s) { AddToken(s, 310, std::string(num_bytes, 'x'), {}); });
  };
  EXPECT_TRUE(with_content(kMaxTokenBytes).ok());
  EXPECT_THAT(Message(with_content(kMaxTokenBytes + 1)), HasSubstr("4097 bytes"));
  const auto with_key = [](size_t num_bytes) {
    return LoadChanged(
        [num_bytes](json* s) { (*s)["model"]["vocab"][std::string(num_bytes, 'x')] = 310; });
  };
  EXPECT_TRUE(with_key(kMaxTokenBytes).ok());
  EXPECT_THAT(Message(with_key(kMaxTokenBytes + 1)), HasSubstr("4097 bytes"));
  const auto with_added = [](size_t count) {
    return LoadChanged([count](json* s) {
      json tokens = json::array();
      for (size_t i = 0; i < count; ++i) {
        tokens.push_back({{"id", 1000 + i}, {"content", "<" + std::to_string(i) + ">"}});
      }
      (*s)["added_tokens"] = std::move(tokens);
    });
  };
  EXPECT_TRUE(with_added(kMaxAddedTokens).ok());
  EXPECT_THAT(Message(with_added(kMaxAddedTokens + 1)), HasSubstr("at most 65536"));
}

TEST(TokenizerLoad, TemplateMeansBosFirst) {
  const json bos_first = {{"type", "TemplateProcessing"},
                          {"single", json::array({{{"SpecialToken", {{"id", "<|user|>"}}}},
                                                  {{"Sequence", {{"id", "A"}}}}})},
                          {"special_tokens", {{"<|user|>", {{"ids", json::array({301})}}}}}};
  json spec = SmallTokenizerJson();
  spec["post_processor"] = {{"type", "Sequence"},
                            {"processors", json::array({{{"type", "ByteLevel"}}, bos_first})}};
  const auto tokenizer = FromJsonOrDie(spec.dump());
  EXPECT_TRUE(tokenizer->add_bos_token());
  EXPECT_EQ(tokenizer->bos_token_id(), 301);
  EXPECT_FALSE(FromJsonOrDie(spec.dump(), R"({"add_bos_token": false})")->add_bos_token());

  spec["post_processor"] = bos_first;
  std::swap(spec["post_processor"]["single"][0], spec["post_processor"]["single"][1]);
  EXPECT_TRUE(absl::IsUnimplemented(LoadStatus(spec))) << "a token behind the text";
  spec["post_processor"] = bos_first;
  spec["post_processor"]["special_tokens"]["<|user|>"]["ids"] = json::array({299});
  EXPECT_TRUE(absl::IsInvalidArgument(LoadStatus(spec))) << "no such token";
  spec["post_processor"]["special_tokens"] = json::object();
  EXPECT_TRUE(absl::IsInvalidArgument(LoadStatus(spec)));
}

TEST(TokenizerLoad, ConfigNamesControlTokens) {
  json spec = SmallTokenizerJson();
  spec["model"]["vocab"]["[PAD]"] = 310;                // in the vocabulary only
  AddToken(&spec, 311, "[SEP]", {{"special", false}});  // added, but ordinary
  const auto tokenizer = FromJsonOrDie(spec.dump(), R"({
      "bos_token": null, "eos_token": "[SEP]", "unk_token": "a", "pad_token": "[PAD]",
      "additional_special_tokens": ["[NEW]", {"content": "<|user|>"}],
      "model_max_length": 1000000000000000019884624838656,
      "chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
  })");
  EXPECT_TRUE(tokenizer->IsSpecial(310));
  EXPECT_TRUE(tokenizer->IsSpecial(311));
  EXPECT_FALSE(tokenizer->IsSpecial('a')) << "single bytes are needed to write text";
  EXPECT_EQ(tokenizer->eos_token_id(), 311);
  EXPECT_EQ(tokenizer->bos_token_id(), std::nullopt);
  EXPECT_EQ(tokenizer->TokenToId("[NEW]"), std::nullopt) << "the model has no row for it";
  EXPECT_EQ(tokenizer->chat_template(), "yes");
  const auto ids = tokenizer->Encode("[PAD][SEP]", {});
  for (const int32_t id : *ids) EXPECT_LT(id, 300);
  EXPECT_EQ(*tokenizer->Encode("[PAD][SEP]", {.parse_special = true}),
            (std::vector<int32_t>{310, 311}));

  for (const char* bad :
       {R"([])", R"({"eos_token": 1})", R"({"eos_token": {}})", R"({"add_bos_token": "yes"})",
        R"({"chat_template": 3})", R"({"chat_template": [1]})",
        R"({"additional_special_tokens": "x"})", R"({"add_bos_token": true})"}) {
    const absl::Status status = LoadStatus(SmallTokenizerJson(), bad);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad << ": " << status;
    EXPECT_THAT(Message(status), HasSubstr("tokenizer_config.json: "));
  }
}

}  // namespace
}  // namespace vivarium::engine
