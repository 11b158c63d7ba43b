#include "engine/text/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/text/utf8.h"
#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

// Ids below 256 are bytes.
const Tokenizer& Small() {
  static const Tokenizer& tokenizer = *FromJsonOrDie(SmallTokenizerJson().dump()).release();
  return tokenizer;
}

TextStream StreamOrDie(std::vector<std::string> stops, std::string tail = "",
                       bool skip_special = true) {
  auto stream = TextStream::Create(&Small(), std::move(stops), std::move(tail), skip_special);
  EXPECT_TRUE(stream.ok()) << stream.status();
  return *std::move(stream);
}

struct Result {
  std::vector<std::string> deltas;
  std::string text;  // with Flush
  std::string tail;
  int stop_index = -1;
};

Result PushAll(TextStream stream, const std::vector<int32_t>& ids) {
  Result result;
  for (const int32_t id : ids) {
    const TextStream::Delta delta = stream.Push(id);
    EXPECT_EQ(delta.stopped, delta.stop_index >= 0);
    EXPECT_EQ(FindInvalidUtf8(delta.text), std::nullopt);
    result.deltas.push_back(delta.text);
    result.text += delta.text;
    if (!delta.stopped) continue;
    result.stop_index = delta.stop_index;
    break;
  }
  result.text += stream.Flush();
  result.tail = stream.TakeTail();
  return result;
}

std::vector<int32_t> Bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

TEST(TextStream, PassesTextThrough) {
  const Result result = PushAll(StreamOrDie({}), {'h', 258 /* hell */, 'o', 300, ' '});
  EXPECT_THAT(result.deltas, testing::ElementsAre("h", "hell", "o", "", " "));
  EXPECT_EQ(result.tail, "");
}

TEST(TextStream, SpecialTokensGiveTextOnlyIfAsked) {
  EXPECT_EQ(PushAll(StreamOrDie({}, "", true), {'a', 300, 'b'}).text, "ab");
  EXPECT_EQ(PushAll(StreamOrDie({}, "", false), {'a', 300, 'b'}).text, "a<|end|>b");
  EXPECT_EQ(PushAll(StreamOrDie({"|end"}, "", false), {'a', 300, 'b'}).text, "a<");
}

TEST(TextStream, IdsThatDontExistGiveNothing) {
  EXPECT_EQ(PushAll(StreamOrDie({}), {'a', -1, 299, 302, INT32_MAX, 'b'}).text, "ab");
}

TEST(TextStream, WaitsForTheRestOfACharacter) {
  const Result result = PushAll(StreamOrDie({}), Bytes("a\xF0\x9F\x99\x82z"));
  EXPECT_THAT(result.deltas, testing::ElementsAre("a", "", "", "", "\xF0\x9F\x99\x82", "z"));
}

TEST(TextStream, InvalidBytesBecomeReplacementCharacters) {
  EXPECT_EQ(PushAll(StreamOrDie({}), Bytes("a\x80"
                                           "b\xE2\x82"
                                           "c\xFF"))
                .text,
            "a\uFFFDb\uFFFDc\uFFFD");
}

TEST(TextStream, TheTailGoesOnInTheNextStream) {
  const std::string text = "\xF0\x9F\x99\x82";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const Result first = PushAll(StreamOrDie({}), Bytes(text.substr(0, cut)));
    EXPECT_EQ(first.text, cut < text.size() ? "" : text);
    EXPECT_EQ(first.tail, cut < text.size() ? text.substr(0, cut) : "");
    EXPECT_EQ(PushAll(StreamOrDie({}, first.tail), Bytes(text.substr(cut))).text,
              cut < text.size() ? text : "");
  }
}

TEST(TextStream, TheTailIsKeptAfterAStop) {
  auto json = SmallTokenizerJson();
  json["model"]["vocab"]["!Ã"] = 290;  // a token that ends inside of a character
  const auto tokenizer = FromJsonOrDie(json.dump());
  auto stream = TextStream::Create(tokenizer.get(), {"!"}, "");
  ASSERT_TRUE(stream.ok());
  const TextStream::Delta delta = stream->Push(290);
  EXPECT_TRUE(delta.stopped);
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(stream->Flush(), "");
  EXPECT_EQ(stream->TakeTail(), "\xC3");
}

TEST(TextStream, HoldsBackWhatMayBeginAStop) {
  const Result miss = PushAll(StreamOrDie({"abcd"}), Bytes("xabcababc"));
  EXPECT_THAT(miss.deltas, testing::ElementsAre("x", "", "", "", "abc", "", "ab", "", ""));
  EXPECT_EQ(miss.text, "xabcababc");  // held back text is not lost at the end
  const Result hit = PushAll(StreamOrDie({"abcd"}), Bytes("xababcdz"));
  EXPECT_THAT(hit.deltas, testing::ElementsAre("x", "", "", "ab", "", "", ""));
  EXPECT_EQ(hit.text, "xab");
  EXPECT_EQ(hit.stop_index, 0);
}

TEST(TextStream, FirstCompleteStopWinsThenTheLongest) {
  EXPECT_EQ(PushAll(StreamOrDie({"abc", "ab"}), Bytes("xabc")).stop_index, 1);
  EXPECT_EQ(PushAll(StreamOrDie({"abcd", "bc"}), Bytes("xabcd")).stop_index, 1);
  EXPECT_EQ(PushAll(StreamOrDie({"c", "bc", "abc"}), Bytes("xabc")).stop_index, 2);
  EXPECT_EQ(PushAll(StreamOrDie({"ll", "hell"}), {'x', 258 /* hell */}).text, "x");
  // Equal strings: the first of them.
  EXPECT_EQ(PushAll(StreamOrDie({"b", "b"}), Bytes("ab")).stop_index, 0);
}

TEST(TextStream, StopInsideOfATokenEndsItsText) {
  const Result result = PushAll(StreamOrDie({"el"}), {'>', 259 /* hello */, 'z'});
  EXPECT_EQ(result.text, ">h");
  EXPECT_EQ(result.stop_index, 0);
}

TEST(TextStream, NothingComesOutAfterAStop) {
  TextStream stream = StreamOrDie({"b"});
  EXPECT_TRUE(stream.Push('b').stopped);
  const TextStream::Delta delta = stream.Push('b');
  EXPECT_FALSE(delta.stopped);
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(TextStream, StopStringsDontMatchAcrossCalls) {
  const Result first = PushAll(StreamOrDie({"abc"}), Bytes("ab"));
  EXPECT_EQ(first.text, "ab");
  EXPECT_EQ(PushAll(StreamOrDie({"abc"}, first.tail), Bytes("c")).text, "c");
}

TEST(TextStream, Bounds) {
  using testing::HasSubstr;
  const auto create = [](std::vector<std::string> stops, std::string tail) {
    return TextStream::Create(&Small(), std::move(stops), std::move(tail)).status();
  };
  const std::vector<std::string> most(kMaxStopStrings, "x");
  EXPECT_TRUE(create(most, "").ok());
  std::vector<std::string> more = most;
  more.push_back("y");
  EXPECT_THAT(std::string(create(more, "").message()), HasSubstr("17 stop strings, at most 16"));
  EXPECT_TRUE(create({std::string(kMaxStopStringBytes, 's')}, "").ok());
  EXPECT_THAT(std::string(create({std::string(kMaxStopStringBytes + 1, 's')}, "").message()),
              HasSubstr("stop string 0 has 257 bytes"));
  EXPECT_THAT(std::string(create({"a", ""}, "").message()), HasSubstr("stop string 1 has 0 bytes"));
  EXPECT_THAT(std::string(create({"a\xFF"}, "").message()), HasSubstr("not valid UTF-8 at byte 1"));
  EXPECT_TRUE(create({}, "\xF0\x9F\x99").ok());
  for (const char* tail : {"a", "\xC3\xA4", "\xF0\x9F\x99\x82", "\xFF", "\xC3\xC3", "\x80"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(create({}, tail))) << tail;
  }
}

// What a stream should give, from the whole text.
struct Oracle {
  std::string text;
  std::string tail;
  int stop_index = -1;
};

Oracle Expected(const std::string& bytes, const std::vector<std::string>& stops) {
  Oracle oracle;
  std::string text;
  const size_t tail_bytes = AppendValidUtf8(bytes, &text);
  oracle.tail = bytes.substr(bytes.size() - tail_bytes);
  size_t best_end = std::string::npos;
  size_t best_begin = 0;
  for (size_t i = 0; i < stops.size(); ++i) {
    const size_t begin = text.find(stops[i]);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stops[i].size();
    if (end > best_end || (end == best_end && begin >= best_begin)) continue;
    best_end = end;
    best_begin = begin;
    oracle.stop_index = static_cast<int>(i);
  }
  oracle.text = oracle.stop_index < 0 ? text : text.substr(0, best_begin);
  return oracle;
}

// Random tokens of a tiny alphabet, so that stop strings often begin, and often fail; each run is
// also compared with the same bytes one by one, because a stop may not depend on tokens.
TEST(TextStream, AgreesWithSearchingTheWholeText) {
  std::mt19937_64 rng(7);
  const auto below = [&rng](size_t n) { return static_cast<size_t>(rng() % n); };
  const std::vector<std::string> alphabet = {
      "a", "a", "b", "h", "e", "l", "o", "\xC3", "\xA4", "\xF0", "\x9F", "\x99", "\x82", "\xFF"};
  int num_stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(below(4));
    for (std::string& stop : stops) {
      for (size_t n = 1 + below(5); n > 0; --n) {
        constexpr const char* kChars[] = {"a", "b", "h", "e", "l", "o", "\u00e4", "\U0001F642"};
        stop += kChars[below(std::size(kChars))];
      }
    }
    std::vector<int32_t> ids;
    std::string bytes;
    for (size_t n = below(40); n > 0; --n) {
      ids.push_back(below(4) == 0 ? static_cast<int32_t>(256 + below(12))
                                  : static_cast<uint8_t>(alphabet[below(alphabet.size())][0]));
      bytes += Small().TokenBytes(ids.back());
    }
    const Oracle expected = Expected(bytes, stops);
    num_stopped += expected.stop_index >= 0 ? 1 : 0;
    const Result by_token = PushAll(StreamOrDie(stops), ids);
    const Result by_byte = PushAll(StreamOrDie(stops), Bytes(bytes));
    ASSERT_EQ(by_token.text, expected.text) << "round " << round;
    ASSERT_EQ(by_token.stop_index, expected.stop_index) << "round " << round;
    ASSERT_EQ(by_byte.text, expected.text) << "round " << round;
    ASSERT_EQ(by_byte.stop_index, expected.stop_index) << "round " << round;
    if (expected.stop_index >= 0) continue;
    ASSERT_EQ(by_token.tail, expected.tail) << "round " << round;
    // Whole texts: the same as Decode, but for the tail that Decode cannot complete either.
    std::string decoded = by_token.text;
    if (!by_token.tail.empty()) AppendUtf8(0xFFFD, &decoded);
    ASSERT_EQ(decoded, Small().Decode(ids, true)) << "round " << round;
  }
  EXPECT_GT(num_stopped, 1000);
}

// No more is held back than may still become a stop string.
TEST(TextStream, EmitsAllThatIsDecided) {
  std::mt19937_64 rng(11);
  for (int round = 0; round < 5000; ++round) {
    const std::vector<std::string> stops = {"aab", "abba"};
    TextStream stream = StreamOrDie(stops);
    std::string pushed;
    std::string emitted;
    for (int i = 0; i < 20; ++i) {
      const char c = rng() % 2 == 0 ? 'a' : 'b';
      pushed += c;
      const TextStream::Delta delta = stream.Push(c);
      if (delta.stopped) break;
      emitted += delta.text;
      const std::string held = pushed.substr(emitted.size());
      const bool may_begin_a_stop =
          held.empty() || std::any_of(stops.begin(), stops.end(), [&held](const std::string& stop) {
            return stop.size() > held.size() && stop.starts_with(held);
          });
      ASSERT_TRUE(may_begin_a_stop) << pushed << " held back: " << held;
    }
  }
}

}  // namespace
}  // namespace vivarium::engine
