#include "engine/checkpoint/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/temp_dir.h"

namespace vivarium::engine {
namespace {

using testing::HasSubstr;

std::string Error(std::string_view text) {
  const absl::StatusOr<nlohmann::json> parsed = ParseJson(text, "c.json", 0);
  return parsed.ok() ? "OK" : std::string(parsed.status().message());
}

TEST(JsonTextTest, AcceptsPythonsSpecialNumbers) {
  const auto parsed = ParseJson(
      R"({"limit": [0.0, Infinity], "low": -Infinity, "nan": NaN, "text": "Infinity NaN \" NaN",)"
      R"( "minus": -1})",
      "c.json", 0);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)["limit"][1], std::string(kJsonInfinity));
  EXPECT_EQ((*parsed)["low"], std::string(kJsonMinusInfinity));
  EXPECT_EQ((*parsed)["nan"], std::string(kJsonNaN));
  EXPECT_EQ((*parsed)["text"], "Infinity NaN \" NaN");
  EXPECT_EQ((*parsed)["minus"], -1);
  EXPECT_THAT(Error("{\"a\": Infinit}"), HasSubstr("byte 6"));
  EXPECT_THAT(Error("{\"a\": NaNa}"), HasSubstr("well-formed JSON"));
  // Offsets stay true behind a replaced number.
  EXPECT_THAT(Error("{\"a\": -Infinity, x}"), HasSubstr("at byte 17"));
}

TEST(JsonTextTest, BoundsTheNesting) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(Error(nested(kMaxJsonDepth)), "OK");
  EXPECT_THAT(Error(nested(kMaxJsonDepth + 1)), HasSubstr("at most 64 levels of nesting"));
  EXPECT_THAT(Error(std::string(1 << 20, '{')), HasSubstr("at byte 64"));
  EXPECT_EQ(Error("[\"" + std::string(1000, '[') + "\"]"), "OK");
}

TEST(JsonTextTest, RefusesWhatIsNoJson) {
  for (const char* text : {"", "{", "{]", "nul", "{\"a\":1,}", "{\"a\":1} x", "[1e999]", "\"\xff\"",
                           "{\"a\":\"\\ud800\"}", "[\"unfinished", "\\"}) {
    EXPECT_THAT(Error(text), HasSubstr("c.json: JSON at byte")) << text;
  }
  EXPECT_THAT(Error("{\"o\":{\"k\":1,\"k\":2}}"), HasSubstr("key 'k'"));
  EXPECT_EQ(Error("{\"o\":{\"k\":1},\"p\":{\"k\":2},\"k\":[{\"k\":1},{\"k\":1}]}"), "OK");
}

TEST(JsonTextTest, ReadsFilesUpToTheirBound) {
  const test::TempDir directory;
  const std::string path = directory.File("c.json");
  EXPECT_TRUE(absl::IsNotFound(ReadJsonObject(path, 10).status()));
  test::WriteFile(path, "{      }  ");
  EXPECT_TRUE(ReadJsonObject(path, 10).ok());
  EXPECT_THAT(std::string(ReadJsonObject(path, 9).status().message()),
              HasSubstr("expected at most 9 bytes, found 10"));
  test::WriteFile(path, "[]");
  EXPECT_THAT(std::string(ReadJsonObject(path, 10).status().message()), HasSubstr("an object"));
  EXPECT_FALSE(ReadJsonObject(directory.path(), 10).ok());  // a directory
  test::WriteFile(path, "");
  EXPECT_FALSE(ReadJsonObject(path, 10).ok());
}

}  // namespace
}  // namespace vivarium::engine
