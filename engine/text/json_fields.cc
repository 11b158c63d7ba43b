#include "engine/text/json_fields.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace vivarium::engine {
namespace {

constexpr size_t kMaxDescribedBytes = 60;

const nlohmann::json& Null() {
  static const nlohmann::json& null = *new nlohmann::json();
  return null;
}

const nlohmann::json& EmptyArray() {
  static const nlohmann::json& array = *new nlohmann::json(nlohmann::json::array());
  return array;
}

const nlohmann::json& EmptyObject() {
  static const nlohmann::json& object = *new nlohmann::json(nlohmann::json::object());
  return object;
}

// The deepest nesting of brackets outside of strings; exact for well-formed JSON.
int NestingDepth(std::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, int max_depth) {
  const int depth = NestingDepth(text);
  if (depth > max_depth) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON nested ", depth, " deep, at most ", max_depth, " are read"));
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", e.what()));
  }
}

std::string DescribeJsonValue(const nlohmann::json& value) {
  std::string text = value.type_name();
  if (value.is_structured()) return text;
  const std::string written =
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  return written.size() <= kMaxDescribedBytes ? absl::StrCat(text, " ", written) : text;
}

JsonFields::JsonFields(const nlohmann::json& value, std::string place, absl::Status* status)
    : value_(value.is_object() ? value : EmptyObject()), place_(std::move(place)), status_(status) {
  if (!value.is_object()) {
    Fail(absl::InvalidArgumentError(
        absl::StrCat(place_, ": expected an object, found ", DescribeJsonValue(value))));
  }
}

const nlohmann::json& JsonFields::Get(const char* key) const {
  const auto it = value_.find(key);
  return it == value_.end() ? Null() : *it;
}

bool JsonFields::Has(const char* key) const { return !Get(key).is_null(); }

bool JsonFields::Bool(const char* key, bool absent) const {
  const nlohmann::json& value = Get(key);
  if (value.is_null()) return absent;
  if (value.is_boolean()) return value.get<bool>();
  FailExpected(key, "true or false");
  return absent;
}

std::string JsonFields::String(const char* key, std::string_view absent) const {
  return Has(key) ? RequiredString(key) : std::string(absent);
}

std::string JsonFields::RequiredString(const char* key) const {
  const nlohmann::json& value = Get(key);
  if (value.is_string()) return value.get<std::string>();
  FailExpected(key, "a string");
  return "";
}

int64_t JsonFields::RequiredInt(const char* key) const {
  const nlohmann::json& value = Get(key);
  // Unsigned values above 2^63 - 1 would wrap; no field of ours is that large.
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX});
  if (fits) return value.get<int64_t>();
  FailExpected(key, "an integer");
  return 0;
}

const nlohmann::json& JsonFields::RequiredArray(const char* key) const {
  const nlohmann::json& value = Get(key);
  if (value.is_array()) return value;
  FailExpected(key, "an array");
  return EmptyArray();
}

const nlohmann::json& JsonFields::RequiredObject(const char* key) const {
  const nlohmann::json& value = Get(key);
  if (value.is_object()) return value;
  FailExpected(key, "an object");
  return EmptyObject();
}

std::string JsonFields::Place(const char* key) const { return absl::StrCat(place_, ".", key); }

void JsonFields::Fail(absl::Status status) const {
  if (status_->ok()) *status_ = std::move(status);
}

void JsonFields::FailExpected(const char* key, std::string_view expected) const {
  Fail(absl::InvalidArgumentError(absl::StrCat(Place(key), ": expected ", std::string(expected),
                                               ", found ", DescribeJsonValue(Get(key)))));
}

}  // namespace vivarium::engine
