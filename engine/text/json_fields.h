// Reading JSON objects with checks that name the place, what was expected and what was found.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace vivarium::engine {

// InvalidArgument: not JSON (the message says where), or nested deeper than `max_depth`.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, int max_depth);

// `value` for a message: its type, and the value itself if it is short.
std::string DescribeJsonValue(const nlohmann::json& value);

// One object's fields. The first error is kept in `*status` and later reads give defaults, so that
// a caller reads all fields first and checks once.
class JsonFields {
 public:
  // `place`: the object's path, for messages. `value`, `status` must outlive this.
  JsonFields(const nlohmann::json& value, std::string place, absl::Status* status);

  // Absent and null are the same.
  bool Has(const char* key) const;
  const nlohmann::json& Get(const char* key) const;  // null if absent

  bool Bool(const char* key, bool absent) const;
  std::string String(const char* key, std::string_view absent) const;
  // Must be present.
  std::string RequiredString(const char* key) const;
  int64_t RequiredInt(const char* key) const;
  const nlohmann::json& RequiredArray(const char* key) const;   // an empty array on error
  const nlohmann::json& RequiredObject(const char* key) const;  // an empty object on error

  // "place.key"
  std::string Place(const char* key) const;
  void Fail(absl::Status status) const;
  bool ok() const { return status_->ok(); }

 private:
  void FailExpected(const char* key, std::string_view expected) const;

  const nlohmann::json& value_;
  std::string place_;
  absl::Status* status_;
};

}  // namespace vivarium::engine
