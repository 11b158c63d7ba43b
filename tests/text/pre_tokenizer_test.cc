// Words: the scanner against PCRE2, patterns of real tokenizers, split behaviors, translation.
#include "engine/text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "engine/text/gpt2_scanner.h"
#include "engine/text/utf8.h"
#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Kind = PreTokenizerStep::Kind;

// The pattern of Llama 3's tokenizer.json (Qwen2's differs in the digits).
constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
// And of GPT-4o's.
constexpr char kO200kPattern[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|)"
    R"(\s+(?!\S)|\s+)";

PreTokenizerStep ByteLevel(bool use_regex, bool add_prefix_space = false) {
  PreTokenizerStep step;
  step.use_regex = use_regex;
  step.add_prefix_space = add_prefix_space;
  return step;
}

PreTokenizerStep Split(std::string pattern, SplitBehavior behavior = SplitBehavior::kIsolated,
                       bool invert = false, Kind kind = Kind::kSplitRegex) {
  PreTokenizerStep step;
  step.kind = kind;
  step.pattern = std::move(pattern);
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

PreTokenizerStep OfClass(Kind kind, SplitBehavior behavior) {
  PreTokenizerStep step;
  step.kind = kind;
  step.behavior = behavior;
  return step;
}

std::vector<std::string> Words(const std::vector<PreTokenizerStep>& steps,
                               const std::string& text) {
  const auto pre_tokenizer = PreTokenizer::Create(steps);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  if (!pre_tokenizer.ok()) return {};
  PreTokenizer::Work work(*pre_tokenizer);
  const absl::Status status = pre_tokenizer->Split(text, &work);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> words;
  for (size_t i = 0; i < work.num_words(); ++i) words.emplace_back(work.word(i));
  return words;
}

std::vector<std::string> ScanWords(std::string_view text) {
  std::vector<std::string> words;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = FindGpt2WordEnd(text, pos);
    words.emplace_back(text.substr(pos, end - pos));
    pos = end;
  }
  return words;
}

TEST(Gpt2Scanner, SplitsAsThePaperSays) {
  EXPECT_THAT(ScanWords("Hello world, it's 2024!  I'll\n\n go  'RE"),
              ElementsAre("Hello", " world", ",", " it", "'s", " 2024", "!", " ", " I", "'ll",
                          "\n\n", " go", " ", " '", "RE"));
}

// The two libraries may know different versions of Unicode: characters that PCRE2 has no category
// for are left out of the comparison.
class Gpt2ScannerTwins : public testing::Test {
 protected:
  Gpt2ScannerTwins()
      : pre_tokenizer_(*PreTokenizer::Create({Split(std::string(kGpt2Pattern))})),
        work_(pre_tokenizer_),
        unassigned_(*Regex::Compile("\\p{Cn}")),
        matcher_(unassigned_) {}

  bool IsKnown(std::string_view text) { return !unassigned_.Find(text, 0, &matcher_)->has_value(); }
  std::vector<std::string> Pcre2Words(std::string_view text) {
    EXPECT_TRUE(pre_tokenizer_.Split(text, &work_).ok());
    std::vector<std::string> words;
    for (size_t i = 0; i < work_.num_words(); ++i) words.emplace_back(work_.word(i));
    return words;
  }

 private:
  PreTokenizer pre_tokenizer_;
  PreTokenizer::Work work_;
  Regex unassigned_;
  Regex::Matcher matcher_;
};

TEST_F(Gpt2ScannerTwins, AgreeOnRandomText) {
  std::mt19937_64 rng(42);
  int num_compared = 0;
  for (int round = 0; round < 40000; ++round) {
    const std::string text = RandomText(&rng, static_cast<int>(rng() % 40));
    if (!IsKnown(text)) continue;
    ++num_compared;
    ASSERT_EQ(Pcre2Words(text), ScanWords(text)) << "round " << round;
  }
  EXPECT_GT(num_compared, 10000);
}

// Every character there is, twice and between others.
TEST_F(Gpt2ScannerTwins, AgreeOnEveryCharacter) {
  int num_compared = 0;
  for (char32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text = "a";
    AppendUtf8(code, &text);
    AppendUtf8(code, &text);
    text += "1";
    if (!IsKnown(text)) continue;
    ++num_compared;
    ASSERT_EQ(Pcre2Words(text), ScanWords(text)) << "U+" << std::hex << uint32_t{code};
  }
  EXPECT_GT(num_compared, 140000);
}

TEST(PreTokenizer, Llama3) {
  EXPECT_THAT(
      Words({Split(kLlama3Pattern), ByteLevel(false)}, "I'LL pay 12345 \n\n  now...\nok"),
      ElementsAre("I", "'LL", " pay", " ", "123", "45", " \n\n", " ", " now", "...\n", "ok"));
}

// Falcon's and Falcon-Mamba's: steps after ByteLevel see its alphabet.
TEST(PreTokenizer, Falcon) {
  const std::vector<PreTokenizerStep> steps = {
      OfClass(Kind::kPunctuation, SplitBehavior::kContiguous), ByteLevel(true),
      OfClass(Kind::kDigits, SplitBehavior::kContiguous), Split("[0-9][0-9][0-9]")};
  EXPECT_THAT(Words(steps, "Hi!? a 12345"), ElementsAre("Hi", "!?", " a", " ", "123", "45"));
  // The second byte of U+00B2 stands for itself in the alphabet, and is a digit there.
  EXPECT_THAT(Words(steps, "a\u00B2"), ElementsAre("a", "\xC2", "\xB2"));
}

TEST(PreTokenizer, SplitBehaviors) {
  const auto words = [](SplitBehavior behavior, bool invert, const std::string& text) {
    return Words({Split("-", behavior, invert, Kind::kSplitString), ByteLevel(false)}, text);
  };
  const std::string text = "the-final--countdown";  // the Hugging Face library's own example
  EXPECT_THAT(words(SplitBehavior::kRemoved, false, text),
              ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(words(SplitBehavior::kIsolated, false, text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(words(SplitBehavior::kMergedWithPrevious, false, text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(words(SplitBehavior::kMergedWithNext, false, text),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(words(SplitBehavior::kContiguous, false, text),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(words(SplitBehavior::kRemoved, true, text), ElementsAre("-", "-", "-"));
  EXPECT_THAT(words(SplitBehavior::kMergedWithPrevious, false, "-a-"), ElementsAre("-", "a-"));
  EXPECT_THAT(words(SplitBehavior::kMergedWithNext, false, "-a-"), ElementsAre("-a", "-"));
}

TEST(PreTokenizer, EmptyMatchesPartTheText) {
  EXPECT_THAT(Words({Split("(?=b)"), ByteLevel(false)}, "abab\u00e4b"),
              ElementsAre("a", "ba", "b\u00e4", "b"));
  EXPECT_THAT(Words({Split("x*", SplitBehavior::kContiguous), ByteLevel(false)}, "axxb"),
              ElementsAre("a", "xx", "b"));
  EXPECT_THAT(Words({Split("x*"), ByteLevel(false)}, ""), ElementsAre());
}

TEST(PreTokenizer, Digits) {
  EXPECT_THAT(
      Words({OfClass(Kind::kDigits, SplitBehavior::kIsolated), ByteLevel(false)}, "a12b\u00b2"),
      ElementsAre("a", "1", "2", "b", "\u00b2"));
  EXPECT_THAT(Words({OfClass(Kind::kDigits, SplitBehavior::kContiguous), ByteLevel(false)}, "a12b"),
              ElementsAre("a", "12", "b"));
}

TEST(PreTokenizer, PrefixSpace) {
  EXPECT_THAT(Words({ByteLevel(true, true)}, "hi you"), ElementsAre(" hi", " you"));
  EXPECT_THAT(Words({ByteLevel(true, true)}, " hi"), ElementsAre(" hi"));
  EXPECT_THAT(Words({ByteLevel(true, true)}, ""), ElementsAre());
  EXPECT_THAT(Words({Split("-"), ByteLevel(true, true)}, "a-b"), ElementsAre(" a", " -", " b"));
}

// No text is lost or changed, whatever the steps.
TEST(PreTokenizer, WordsMakeUpTheText) {
  const std::vector<std::vector<PreTokenizerStep>> pipelines = {
      {ByteLevel(true)},
      {Split(kLlama3Pattern), ByteLevel(false)},
      {Split(kO200kPattern), ByteLevel(false)},
      {OfClass(Kind::kPunctuation, SplitBehavior::kContiguous), ByteLevel(true),
       OfClass(Kind::kDigits, SplitBehavior::kContiguous), Split("[0-9][0-9][0-9]")},
      {Split("a|(?=b)", SplitBehavior::kMergedWithPrevious), ByteLevel(true)},
      {Split("\\s+", SplitBehavior::kMergedWithNext, true), ByteLevel(true)},
  };
  std::mt19937_64 rng(3);
  for (const auto& steps : pipelines) {
    const auto pre_tokenizer = PreTokenizer::Create(steps);
    ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
    PreTokenizer::Work work(*pre_tokenizer);
    for (int round = 0; round < 2000; ++round) {
      const std::string text = RandomText(&rng, static_cast<int>(rng() % 50));
      ASSERT_TRUE(pre_tokenizer->Split(text, &work).ok());
      std::string joined;
      for (size_t i = 0; i < work.num_words(); ++i) {
        ASSERT_FALSE(work.word(i).empty());
        joined += work.word(i);
      }
      ASSERT_EQ(joined, text);
    }
  }
}

TEST(TranslatePattern, KeepsTheMeaning) {
  const auto translated = [](std::string_view pattern) {
    const auto result = TranslatePattern(pattern);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or("");
  };
  EXPECT_EQ(translated(R"([^\s\p{L}]+|\S\\s)"), R"([^\p{White_Space}\p{L}]+|\P{White_Space}\\s)");
  EXPECT_EQ(translated(R"(\u4e00\v\x{20}\x41\d\.)"), R"(\x{4e00}\x0B\x{20}\x41\d\.)");
  EXPECT_EQ(translated(R"(\p{L}+\p{N}{1,3}a++b?+)"), R"(\p{L}+\p{N}{1,3}a++b?+)");
  EXPECT_EQ(translated("(?i)a(?:b)(?=c)(?!d)(?<=e)(?<!f)(?>g)(?i:h)"),
            "(?i)a(?:b)(?=c)(?!d)(?<=e)(?<!f)(?>g)(?i:h)");
  // White space is Unicode's: U+180E is not, U+0085 is.
  EXPECT_THAT(Words({Split("\\s", SplitBehavior::kRemoved), ByteLevel(false)}, "a\u180Eb\u0085c"),
              ElementsAre("a\u180Eb", "c"));
}

TEST(TranslatePattern, RefusesWhatDiffers) {
  for (const char* pattern :
       {R"(\w+)",   R"([\w])",    R"(\b)",     R"(\h)",     R"(\R)",    R"(\K)",       R"(\1)",
        R"(\z)",    R"(\G)",      R"([a[b]])", R"([a&&b])", R"([]a])",  R"([^]a])",    R"(a{1,2}+)",
        R"(a{,2})", R"((*UTF)a)", R"(a(?i)b)", R"((?m)a)",  R"((?#x))", R"((?P<n>a))", R"((?<n>a))",
        R"((?R))",  R"((?~a))",   R"(\p{L)",   R"(\u12)",   "a\\"}) {
    const absl::Status status = TranslatePattern(pattern).status();
    EXPECT_TRUE(absl::IsUnimplemented(status)) << pattern << ": " << status;
  }
  const absl::Status malformed = Regex::Compile("(a").status();
  EXPECT_TRUE(absl::IsInvalidArgument(malformed)) << malformed;
  EXPECT_THAT(std::string(malformed.message()), HasSubstr("'(a'"));
  EXPECT_TRUE(absl::IsInvalidArgument(Regex::Compile(R"(\p{Nonesuch})").status()));
}

// A pattern that backtracks without end is stopped by its limits.
TEST(Regex, MatchLimitsEndHostilePatterns) {
  const auto regex = Regex::Compile("(a|a)+[bd]");
  ASSERT_TRUE(regex.ok()) << regex.status();
  Regex::Matcher matcher(*regex);
  const auto match = regex->Find(std::string(200, 'a') + "c", 0, &matcher);
  EXPECT_TRUE(absl::IsResourceExhausted(match.status())) << match.status();
}

// Patterns of real tokenizers take time linear in hostile texts: these runs end at all.
TEST(PreTokenizer, RealPatternsDontBlowUp) {
  constexpr size_t kTextBytes = size_t{1} << 20;
  const std::vector<std::string> units = {" ", "a", "\n",     " a",         "a ",  "\t\n", "1",
                                          ".", "'", "\u0301", "\U0001F642", " \r", "A",    "aA"};
  for (const char* pattern : {kGpt2Pattern.data(), kLlama3Pattern, kO200kPattern}) {
    const auto pre_tokenizer = PreTokenizer::Create({Split(pattern), ByteLevel(false)});
    ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
    PreTokenizer::Work work(*pre_tokenizer);
    const auto begin = std::chrono::steady_clock::now();
    for (const std::string& unit : units) {
      std::string text;
      while (text.size() < kTextBytes) text += unit;
      const absl::Status status = pre_tokenizer->Split(text, &work);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(pre_tokenizer->Split(text + "!", &work).ok());
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::cout << 2 * units.size() << " MiB in " << seconds.count() << " s\n";
  }
}

}  // namespace
}  // namespace vivarium::engine
