// PromptMemory against the plainest way to say what it says, and its bounds.
#include "server/prompt_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace vivarium::server {
namespace {

using Ids = std::vector<int32_t>;

TEST(PromptMemory, TellsTheLongestSharedBeginning) {
  PromptMemory memory;
  EXPECT_EQ(memory.Remember("a", Ids{1, 2, 3}), 0u);
  EXPECT_EQ(memory.Remember("a", Ids{1, 2, 4, 5}), 2u);
  EXPECT_EQ(memory.Remember("a", Ids{1, 2, 3}), 3u);
  EXPECT_EQ(memory.Remember("a", Ids{1, 2, 3, 9}), 3u);
  EXPECT_EQ(memory.Remember("a", Ids{1}), 1u);
  EXPECT_EQ(memory.Remember("a", Ids{2, 2, 3}), 0u);
  EXPECT_EQ(memory.Remember("b", Ids{1, 2, 3}), 0u);  // another tenant's are not there
  EXPECT_EQ(memory.Remember("a", Ids{}), 0u);
  EXPECT_EQ(memory.num_prompts(), 7u);
  EXPECT_EQ(memory.num_tokens(), 3u + 4 + 4 + 1 + 3 + 3);
}

TEST(PromptMemory, IsWhatComparingAllWouldTell) {
  std::mt19937 random(5);
  PromptMemory memory;
  std::vector<Ids> all;
  for (int i = 0; i < 2000; ++i) {
    Ids prompt(random() % 12);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random() % 3);
    size_t expected = 0;
    for (const Ids& other : all) {
      const auto end = std::mismatch(prompt.begin(), prompt.end(), other.begin(), other.end());
      expected = std::max(expected, static_cast<size_t>(end.first - prompt.begin()));
    }
    EXPECT_EQ(memory.Remember("t", prompt), expected);
    all.push_back(prompt);
  }
}

TEST(PromptMemory, ForgetsTheLeastRecentlyUsedAtItsBounds) {
  PromptMemory prompts({.max_prompts = 2, .max_tokens = 100, .max_prompt_tokens = 50});
  prompts.Remember("t", Ids{1, 1});
  prompts.Remember("t", Ids{2, 2});
  EXPECT_EQ(prompts.Remember("t", Ids{1, 1}), 2u);  // used again
  prompts.Remember("t", Ids{3, 3});
  EXPECT_EQ(prompts.num_prompts(), 2u);
  EXPECT_EQ(prompts.Remember("t", Ids{1, 1}), 2u);
  EXPECT_EQ(prompts.Remember("t", Ids{2, 2}), 0u);

  PromptMemory tokens({.max_prompts = 100, .max_tokens = 100, .max_prompt_tokens = 50});
  EXPECT_EQ(tokens.Remember("t", Ids(80, 7)), 0u);
  EXPECT_EQ(tokens.num_tokens(), 50u);  // the first 50
  EXPECT_EQ(tokens.Remember("t", Ids(90, 7)), 50u);
  EXPECT_EQ(tokens.num_prompts(), 1u);
  tokens.Remember("t", Ids(50, 8));
  EXPECT_EQ(tokens.num_tokens(), 100u);
  tokens.Remember("t", Ids(1, 9));
  EXPECT_EQ(tokens.num_tokens(), 51u);
  EXPECT_EQ(tokens.Remember("t", Ids(60, 7)), 0u);
}

}  // namespace
}  // namespace vivarium::server
