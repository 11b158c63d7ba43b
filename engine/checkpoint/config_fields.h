// ConfigFields: typed, checked access to the fields of a JSON object.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/json_text.h"

namespace vivarium::engine {

// A view of `object`, read from `file` (named in errors); both must outlive it. The readers leave
// `out` alone and do nothing when `*status` already holds an error; when the field is absent or
// null they leave `out` at what it was, unless said otherwise; when it is of the wrong type or out
// of range they set `*status` to INVALID_ARGUMENT naming file, field, expected and found.
class ConfigFields {
 public:
  ConfigFields(const std::string& file, const nlohmann::json& object)
      : file_(file), object_(object) {}

  const std::string& file() const { return file_; }
  bool Has(const std::string& name) const { return Find(name) != nullptr; }
  // Null when there is no such field.
  const nlohmann::json* Find(const std::string& name) const;

  // The first string of the list `list_name`, else the string `name`, else "".
  absl::StatusOr<std::string> FirstString(const std::string& list_name,
                                          const std::string& name) const;
  // In [min, max]. Absent: `fallback`, or an error when there is none.
  void Int(const std::string& name, int64_t min, int64_t max, std::optional<int64_t> fallback,
           int64_t* out, absl::Status* status) const;
  void Bool(const std::string& name, bool* out, absl::Status* status) const;
  void OptionalBool(const std::string& name, std::optional<bool>* out, absl::Status* status) const;
  // Finite, in [min, max].
  void OptionalFloat(const std::string& name, double min, double max, std::optional<float>* out,
                     absl::Status* status) const;
  // In (0, 1).
  void Epsilon(const std::string& name, float* out, absl::Status* status) const;
  // One id or a list of at most kMaxTokenIds, each in [0, limit]. False when there is none.
  bool TokenIds(const std::string& name, int64_t limit, std::vector<int32_t>* out,
                absl::Status* status) const;
  static constexpr size_t kMaxTokenIds = 64;

 private:
  // The field when it is there and not null and `*status` is OK.
  const nlohmann::json* FindValue(const std::string& name, const absl::Status& status) const;
  absl::Status Wrong(const std::string& name, const std::string& expected,
                     const nlohmann::json& found) const;

  const std::string& file_;
  const nlohmann::json& object_;
};

}  // namespace vivarium::engine
