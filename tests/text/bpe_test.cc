#include "engine/text/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/text/byte_level.h"
#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

bool NoneIsSpecial(int32_t) { return false; }

// Merges chosen at random over the bytes of `alphabet`, so that ranks come in any order.
TokenizerSpec RandomSpec(std::mt19937_64* rng, std::string_view alphabet, size_t num_merges) {
  TokenizerSpec spec;
  std::map<std::string, int32_t> id_of_key;
  std::vector<std::string> keys;
  const auto add = [&](const std::string& key) {
    const auto [it, is_new] = id_of_key.emplace(key, static_cast<int32_t>(id_of_key.size()));
    if (!is_new) return;
    spec.vocab.emplace_back(key, it->second);
    keys.push_back(key);
  };
  for (const char c : alphabet) add(WriteByteAlphabet(std::string(1, c)));
  for (size_t i = 0; i < num_merges; ++i) {
    const std::string left = keys[(*rng)() % keys.size()];
    const std::string right = keys[(*rng)() % keys.size()];
    if (left.size() + right.size() > 12) continue;
    add(left + right);
    spec.merges.push_back({id_of_key[left], id_of_key[right], id_of_key[left + right]});
  }
  return spec;
}

// The definition: merge the leftmost pair of the lowest rank until there is none.
std::vector<int32_t> Oracle(const TokenizerSpec& spec, std::string_view word) {
  std::map<std::string, int32_t> id_of_key(spec.vocab.begin(), spec.vocab.end());
  std::map<std::pair<int32_t, int32_t>, size_t> rank_of_pair;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    rank_of_pair[{spec.merges[rank].left, spec.merges[rank].right}] = rank;
  }
  std::vector<int32_t> ids;
  for (const char c : word) ids.push_back(id_of_key[WriteByteAlphabet(std::string(1, c))]);
  while (true) {
    size_t best_rank = spec.merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = rank_of_pair.find({ids[i], ids[i + 1]});
      if (it == rank_of_pair.end() || it->second >= best_rank) continue;
      best_rank = it->second;
      best = i;
    }
    if (best_rank == spec.merges.size()) return ids;
    ids[best] = spec.merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BpeModel, ScanHeapAndCacheAgreeWithTheDefinition) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 200; ++round) {
    const std::string alphabet = round % 2 == 0 ? "ab" : "abc \xC3\xA4";
    const TokenizerSpec spec = RandomSpec(&rng, alphabet, 1 + rng() % 60);
    const auto model = BpeModel::Create(spec, NoneIsSpecial);
    ASSERT_TRUE(model.ok()) << model.status();
    BpeModel::Work work;
    std::vector<int32_t> all_ids;  // the cache refers to the ids before
    for (int k = 0; k < 60; ++k) {
      std::string word(1 + rng() % (k % 10 == 0 ? 100 : 12), 'a');
      for (char& c : word) c = alphabet[rng() % alphabet.size()];
      const std::vector<int32_t> expected = Oracle(spec, word);
      std::vector<int32_t> by_scan;
      std::vector<int32_t> by_heap;
      ASSERT_TRUE(model->MergeByScan(word, &work, &by_scan).ok());
      ASSERT_TRUE(model->MergeByHeap(word, &work, &by_heap).ok());
      ASSERT_EQ(by_scan, expected) << "round " << round << " word " << word;
      ASSERT_EQ(by_heap, expected) << "round " << round << " word " << word;
      const size_t begin = all_ids.size();
      ASSERT_TRUE(model->Encode(word, &work, &all_ids).ok());
      ASSERT_EQ(
          std::vector<int32_t>(all_ids.begin() + static_cast<ptrdiff_t>(begin), all_ids.end()),
          expected)
          << "round " << round << " word " << word;
    }
  }
}

TEST(BpeModel, CacheHasItsBound) {
  std::mt19937_64 rng(2);
  const TokenizerSpec spec = RandomSpec(&rng, "abcd", 20);
  const auto model = BpeModel::Create(spec, NoneIsSpecial);
  ASSERT_TRUE(model.ok());
  BpeModel::Work work;
  std::vector<int32_t> ids;
  // All words of 8 letters of 4: four times as many as the cache takes.
  for (int n = 0; n < 1 << 16; ++n) {
    std::string word;
    for (int i = 0; i < 8; ++i) word += "abcd"[n >> (2 * i) & 3];
    ASSERT_TRUE(model->Encode(word, &work, &ids).ok());
    ASSERT_LE(work.num_cached_words(), kMaxCachedWords);
    if (n % 997 == 0) {
      std::vector<int32_t> again;
      BpeModel::Work fresh;
      ASSERT_TRUE(model->Encode(word, &fresh, &again).ok());
      ASSERT_EQ(again, Oracle(spec, word));
    }
  }
  EXPECT_EQ(work.num_cached_words(), kMaxCachedWords);
  const size_t num_ids = ids.size();
  ASSERT_TRUE(model->Encode(std::string(kMaxCachedWordBytes + 1, 'a'), &work, &ids).ok());
  EXPECT_GT(ids.size(), num_ids);
}

TEST(BpeModel, SpecialTokensAreNeverMade) {
  TokenizerSpec spec;
  spec.vocab = {{"a", 0}, {"b", 1}, {"ab", 2}};
  spec.merges = {{0, 1, 2}};
  for (const bool ignore_merges : {false, true}) {
    spec.ignore_merges = ignore_merges;
    const auto model = BpeModel::Create(spec, [](int32_t id) { return id == 2; });
    ASSERT_TRUE(model.ok());
    BpeModel::Work work;
    std::vector<int32_t> ids;
    ASSERT_TRUE(model->Encode("ab", &work, &ids).ok());
    EXPECT_EQ(ids, (std::vector<int32_t>{0, 1}));
  }
  EXPECT_TRUE(
      absl::IsInvalidArgument(BpeModel::Create(spec, [](int32_t id) { return id == 0; }).status()));
}

TEST(BpeModel, IgnoreMergesTakesWholeWords) {
  TokenizerSpec spec;
  spec.vocab = {{"a", 0}, {"b", 1}, {"ab", 2}, {"abb", 3}};
  spec.merges = {{0, 1, 2}};
  std::vector<int32_t> ids;
  BpeModel::Work work;
  ASSERT_TRUE(BpeModel::Create(spec, NoneIsSpecial)->Encode("abb", &work, &ids).ok());
  EXPECT_EQ(ids, (std::vector<int32_t>{2, 1}));
  spec.ignore_merges = true;
  ids.clear();
  BpeModel::Work other_work;
  ASSERT_TRUE(BpeModel::Create(spec, NoneIsSpecial)->Encode("abb", &other_work, &ids).ok());
  EXPECT_EQ(ids, (std::vector<int32_t>{3}));
}

TEST(BpeModel, NamesAMissingByte) {
  TokenizerSpec spec;
  spec.vocab = {{"a", 0}};
  const auto model = BpeModel::Create(spec, NoneIsSpecial);
  BpeModel::Work work;
  std::vector<int32_t> ids;
  const absl::Status status = model->Encode("aaz", &work, &ids);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(status.message().find("0x7a, at 2"), absl::string_view::npos) << status;
}

// Texts of one word or of very many, a megabyte each: they end, and say what they took.
class HostileText : public testing::TestWithParam<const char*> {};

TEST_P(HostileText, Ends) {
  constexpr size_t kTextBytes = size_t{1} << 20;
  const auto tokenizer = LoadOrDie(TokenizerDir(GetParam()));
  for (const std::string unit : {"a", " ", "\U0001F642", "\n", "ab", "'", " a", "\u0301", "\u00e4",
                                 "0", "=", "\U0001F468\u200D\U0001F469\u200D\U0001F467"}) {
    std::string text;
    while (text.size() < kTextBytes) text += unit;
    const auto begin = std::chrono::steady_clock::now();
    const auto ids = tokenizer->Encode(text, {});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(tokenizer->Decode(*ids, false), text);
    std::cout << "1 MiB of '" << unit << "': " << ids->size() << " ids in " << seconds.count()
              << " s\n";
  }
}

INSTANTIATE_TEST_SUITE_P(All, HostileText, testing::Values("gpt2", "neox"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace vivarium::engine
