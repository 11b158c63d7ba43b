// utf8.h, byte_level.h, nfc.h
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "engine/text/byte_level.h"
#include "engine/text/nfc.h"
#include "engine/text/utf8.h"
#include "tests/text/text_testing.h"

namespace vivarium::engine {
namespace {

std::string Nfc(std::string_view text) {
  std::string out;
  AppendNfc(text, &out);
  return out;
}

TEST(Utf8, EveryCharacterThereAndBack) {
  for (char32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(code, &text);
    const Utf8Char c = DecodeUtf8(text);
    ASSERT_EQ(c.status, Utf8Status::kValid);
    ASSERT_EQ(c.code, code);
    ASSERT_EQ(c.num_bytes, text.size());
    for (size_t n = 1; n < text.size(); ++n) {
      const Utf8Char part = DecodeUtf8(std::string_view(text).substr(0, n));
      ASSERT_EQ(part.status, Utf8Status::kIncomplete);
      ASSERT_EQ(part.num_bytes, n);
    }
  }
}

TEST(Utf8, RefusesWhatIsNot) {
  struct Case {
    const char* bytes;
    uint8_t num_bytes;
  };
  for (const auto& [bytes, num_bytes] : {Case{"\x80", 1},
                                         {"\xC0\x80", 1},
                                         {"\xC1\xBF", 1},
                                         {"\xE0\x80\x80", 1},
                                         {"\xED\xA0\x80", 1},
                                         {"\xF0\x80\x80\x80", 1},
                                         {"\xF4\x90\x80\x80", 1},
                                         {"\xF5\x80\x80\x80", 1},
                                         {"\xFF", 1},
                                         {"\xE2\x82z", 2},
                                         {"\xF0\x9F\x99z", 3},
                                         {"\xC3z", 1}}) {
    const Utf8Char c = DecodeUtf8(bytes);
    EXPECT_EQ(c.status, Utf8Status::kInvalid) << bytes;
    EXPECT_EQ(c.num_bytes, num_bytes) << bytes;
  }
  EXPECT_EQ(FindInvalidUtf8("a\u00e4\U0001F642"), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("a\u00e4\xE2\x82"), 3u);
  EXPECT_EQ(FindInvalidUtf8("ab\xED\xA0\x80"), 2u);
}

TEST(Utf8, AppendValidReplacesAndReportsTheTail) {
  std::string out;
  EXPECT_EQ(AppendValidUtf8("a\xE2\x82z\xFF\xF0\x9F", &out), 2u);
  EXPECT_EQ(out, "a\uFFFDz\uFFFD");
}

// What comes out is valid, and equal to what went in where that was valid; a cut anywhere gives the
// same, with the tail carried over.
TEST(Utf8, AppendValidOnRandomBytes) {
  std::mt19937_64 rng(5);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = RandomText(&rng, 8);
    for (size_t n = rng() % 3; n > 0 && !bytes.empty(); --n) {
      bytes[rng() % bytes.size()] = static_cast<char>(rng());
    }
    std::string whole;
    const size_t tail = AppendValidUtf8(bytes, &whole);
    ASSERT_EQ(FindInvalidUtf8(whole), std::nullopt);
    if (!FindInvalidUtf8(bytes).has_value()) {
      ASSERT_EQ(whole, bytes);
    }
    const size_t cut = rng() % (bytes.size() + 1);
    std::string parts;
    const size_t first_tail = AppendValidUtf8(bytes.substr(0, cut), &parts);
    ASSERT_EQ(AppendValidUtf8(bytes.substr(cut - first_tail), &parts), tail);
    ASSERT_EQ(parts, whole);
  }
}

TEST(ByteAlphabet, ThereAndBack) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(ByteOfChar(CharOfByte(static_cast<uint8_t>(byte))), byte);
    bytes += static_cast<char>(byte);
  }
  EXPECT_EQ(ReadByteAlphabet(WriteByteAlphabet(bytes)), bytes);
  EXPECT_EQ(WriteByteAlphabet(" a\n"), "\u0120a\u010A");
  EXPECT_EQ(ReadByteAlphabet("a b"), std::nullopt);
  EXPECT_EQ(ReadByteAlphabet("\u0144"), std::nullopt);
  EXPECT_EQ(ReadByteAlphabet("\U0001F642"), std::nullopt);
}

TEST(Nfc, AgreesWithUtf8procOnRandomText) {
  std::mt19937_64 rng(9);
  for (int round = 0; round < 20000; ++round) {
    const std::string text = RandomText(&rng, static_cast<int>(rng() % 40));
    ASSERT_EQ(Nfc(text), ReferenceNfc(text)) << "round " << round;
  }
}

// Every character, before and behind letters and marks that it may join.
TEST(Nfc, AgreesWithUtf8procOnEveryCharacter) {
  for (char32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text = "a";
    AppendUtf8(code, &text);
    text += "\u0323\u0301o";
    AppendUtf8(code, &text);
    AppendUtf8(code, &text);
    text += "\u1161\u11A8\u09BE";
    ASSERT_EQ(Nfc(text), ReferenceNfc(text)) << "U+" << std::hex << uint32_t{code};
  }
}

TEST(Nfc, HangulComposesAsTheStandardSays) {
  EXPECT_EQ(Nfc("\u1100\u1161\u11A8"), "\uAC01");
  EXPECT_EQ(Nfc("\uAC00\u11A8"), "\uAC01");
  EXPECT_EQ(Nfc("\uAC00\u11A7"), "\uAC00\u11A7");  // no trailing Jamo: stays
  EXPECT_EQ(Nfc("\u1100\u1161\u11A7\u11A8"), "\uAC00\u11A7\u11A8");
}

// A megabyte of marks in the worst order: an exchange sort would need about 10^11 steps.
TEST(Nfc, LongRunsOfMarksEnd) {
  std::string text = "a";
  for (int i = 0; i < 250000; ++i) text += "\u0301\u0323";  // class 230, then 220
  const std::string normal = Nfc(text);
  EXPECT_EQ(normal.substr(0, 5), "\u1EA1\u0323");
  // The base takes one of each class that composes; the marks left are as many as before.
  EXPECT_EQ(normal.size(), 3 + 2 * (500000 - 1));
}

}  // namespace
}  // namespace vivarium::engine
