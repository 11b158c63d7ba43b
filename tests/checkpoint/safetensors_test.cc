#include "engine/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace vivarium::engine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string Length(uint64_t value) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

std::string File(const std::string& header, size_t data_bytes) {
  std::string data;
  for (size_t i = 0; i < data_bytes; ++i) data += static_cast<char>(i);
  return Length(header.size()) + header + data;
}

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The error that `text` gets.
std::string Error(const std::string& text) {
  const absl::StatusOr<TensorTable> table = ParseSafetensors(Bytes(text), "m.safetensors");
  if (table.ok()) return "OK";
  EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(table.status().message());
}

TEST(SafetensorsTest, ReadsTensorsOfEveryKind) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},)"
      R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[12,12]},)"
      R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[12,16]},)"
      R"("ids":{"dtype":"I64","shape":[1],"data_offsets":[16,24]},)"
      R"("h":{"dtype":"F16","shape":[1,1,1,1,1,1,1,2],"data_offsets":[24,28]}}   )";
  const std::string file = File(header, 28);
  const absl::StatusOr<TensorTable> table = ParseSafetensors(Bytes(file), "m.safetensors");
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->tensors.size(), 4u);
  const TensorView& b = table->tensors.at("b");
  EXPECT_EQ(b.dtype, kernels::DType::kBF16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.data.size(), 12u);
  EXPECT_EQ(b.file, "m.safetensors");
  EXPECT_EQ(b.file_offset, 8 + header.size());
  EXPECT_EQ(reinterpret_cast<const char*>(b.data.data()), file.data() + b.file_offset);
  EXPECT_TRUE(table->tensors.at("empty").data.empty());
  EXPECT_EQ(table->tensors.at("scalar").data[0], std::byte{12});
  EXPECT_EQ(table->tensors.at("h").data[0], std::byte{24});
  EXPECT_EQ(table->skipped.at("ids"), "I64");
}

TEST(SafetensorsTest, RefusesALengthThatLeavesTheFile) {
  EXPECT_THAT(Error("1234567"), AllOf(HasSubstr("m.safetensors: header length at byte 0"),
                                      HasSubstr("expected 8 bytes, found 7 bytes")));
  EXPECT_THAT(Error(Length(1)), HasSubstr("expected at most 0 (the file has 8 bytes), found 1"));
  EXPECT_THAT(Error(Length(UINT64_MAX) + "{}"), HasSubstr("found 18446744073709551615"));
  EXPECT_EQ(Error(Length(2) + "{}"), "OK");
}

TEST(SafetensorsTest, BoundsTheHeader) {
  std::string header = "{}";
  header.resize(kMaxSafetensorsHeaderBytes, ' ');
  EXPECT_EQ(Error(File(header, 0)), "OK");
  header += ' ';
  EXPECT_THAT(Error(File(header, 0)), HasSubstr("expected at most 33554432"));
}

TEST(SafetensorsTest, RefusesHeadersThatAreNoTensorList) {
  EXPECT_THAT(Error(File("[]", 0)), HasSubstr("expected a JSON object, found array"));
  EXPECT_THAT(Error(File("{\"a\":", 0)), HasSubstr("JSON at byte 13: expected well-formed JSON"));
  EXPECT_THAT(Error(File("{\"a\":1}", 0)), HasSubstr("entry of tensor 'a' at byte 8"));
  const std::string twice = R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                            R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})";
  EXPECT_THAT(Error(File(twice, 4)), HasSubstr("key 'a'"));
  EXPECT_THAT(Error(File(std::string(200, '['), 0)), HasSubstr("at most 64 levels of nesting"));
}

struct BadEntry {
  const char* entry;
  const char* message;
};

TEST(SafetensorsTest, RefusesBadEntriesNamingTensorExpectedAndFound) {
  const BadEntry cases[] = {
      {R"({"shape":[1],"data_offsets":[0,4]})", "dtype of tensor 'x'"},
      {R"({"dtype":7,"shape":[1],"data_offsets":[0,4]})", "expected a string, found 7"},
      {R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})", "found \"F31\""},
      {R"({"dtype":"F32","data_offsets":[0,4]})",
       "shape of tensor 'x' at byte 8: expected an array"},
      {R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "whole numbers from 0 to 2^63 - 1"},
      {R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "whole numbers"},
      {R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})", "whole numbers"},
      {R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})",
       "at most 8 dimensions, found 9"},
      {R"({"dtype":"F32","shape":[1]})", "data_offsets of tensor 'x'"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", "two whole numbers"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "begin <= end <= 4"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", "begin <= end <= 4"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,-4]})", "two whole numbers"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", "expected 8 bytes for \"F32\" [2]"},
      {R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]})",
       "expected fewer than 2^63 bytes"},
      {R"({"dtype":"F32","shape":[0,9223372036854775807,9],"data_offsets":[0,0]})",
       "expected fewer than 2^63 bytes"},
  };
  for (const BadEntry& bad : cases) {
    const std::string error = Error(File(std::string("{\"x\":") + bad.entry + "}", 4));
    EXPECT_THAT(error, AllOf(HasSubstr("m.safetensors: "), HasSubstr(bad.message)));
  }
}

TEST(SafetensorsTest, RefusesHolesOverlapsAndRests) {
  const auto two = [](const char* first, const char* second) {
    return std::string("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":") + first +
           "},\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" + second + "}}";
  };
  EXPECT_EQ(Error(File(two("[4,8]", "[0,4]"), 8)), "OK");
  EXPECT_THAT(
      Error(File(two("[0,4]", "[0,4]"), 8)),
      HasSubstr("expected its data to follow the previous tensor's, at data offset 4, found "
                "data offset 0"));
  EXPECT_THAT(Error(File(two("[0,4]", "[8,12]"), 12)), HasSubstr("tensor 'y'"));
  EXPECT_THAT(Error(File(two("[0,4]", "[4,8]"), 9)), HasSubstr("found 1 bytes that belong to no"));
  // A file cut anywhere is refused.
  const std::string whole = File(two("[0,4]", "[4,8]"), 8);
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(Error(whole.substr(0, size)), "OK") << size;
  }
}

TEST(SafetensorsTest, NamesAreMadePrintableAndCut) {
  const std::string header = "{\"" + std::string(1000, 'n') + "\\u0007\":1}";
  const std::string error = Error(File(header, 0));
  EXPECT_LT(error.size(), 300u);
  EXPECT_THAT(error, HasSubstr("nnn...'"));
}

}  // namespace
}  // namespace vivarium::engine
