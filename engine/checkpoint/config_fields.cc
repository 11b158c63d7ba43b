#include "engine/checkpoint/config_fields.h"

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"

namespace vivarium::engine {

using nlohmann::json;

namespace {

// True when `value` is a whole number in [min, max].
bool IntInRange(const json& value, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return false;
  return value.get<int64_t>() >= min && value.get<int64_t>() <= max;
}

}  // namespace

const json* ConfigFields::Find(const std::string& name) const {
  const auto field = object_.find(name);
  return field == object_.end() ? nullptr : &*field;
}

const json* ConfigFields::FindValue(const std::string& name, const absl::Status& status) const {
  if (!status.ok()) return nullptr;
  const json* field = Find(name);
  return field == nullptr || field->is_null() ? nullptr : field;
}

absl::Status ConfigFields::Wrong(const std::string& name, const std::string& expected,
                                 const json& found) const {
  return MalformedField(file_, absl::StrCat("field ", name), expected, DescribeJson(found));
}

absl::StatusOr<std::string> ConfigFields::FirstString(const std::string& list_name,
                                                      const std::string& name) const {
  if (const json* list = FindValue(list_name, absl::OkStatus()); list != nullptr) {
    if (!list->is_array() || (!list->empty() && !list->front().is_string())) {
      return Wrong(list_name, "a list of strings", *list);
    }
    if (!list->empty()) return list->front().get<std::string>();
  }
  const json* field = FindValue(name, absl::OkStatus());
  if (field == nullptr) return std::string();
  if (!field->is_string()) return Wrong(name, "a string", *field);
  return field->get<std::string>();
}

void ConfigFields::Int(const std::string& name, int64_t min, int64_t max,
                       std::optional<int64_t> fallback, int64_t* out, absl::Status* status) const {
  if (!status->ok()) return;
  const json* field = FindValue(name, *status);
  const std::string expected = absl::StrCat("a whole number from ", min, " to ", max);
  if (field != nullptr && IntInRange(*field, min, max)) {
    *out = field->get<int64_t>();
  } else if (field != nullptr) {
    *status = Wrong(name, expected, *field);
  } else if (fallback.has_value()) {
    *out = *fallback;
  } else {
    *status = MalformedField(file_, absl::StrCat("field ", name), expected, "none");
  }
}

void ConfigFields::OptionalBool(const std::string& name, std::optional<bool>* out,
                                absl::Status* status) const {
  const json* field = FindValue(name, *status);
  if (field == nullptr) return;
  if (!field->is_boolean()) {
    *status = Wrong(name, "true or false", *field);
    return;
  }
  *out = field->get<bool>();
}

void ConfigFields::Bool(const std::string& name, bool* out, absl::Status* status) const {
  std::optional<bool> value;
  OptionalBool(name, &value, status);
  if (value.has_value()) *out = *value;
}

void ConfigFields::OptionalFloat(const std::string& name, double min, double max,
                                 std::optional<float>* out, absl::Status* status) const {
  const json* field = FindValue(name, *status);
  if (field == nullptr) return;
  // A number that JSON can write is finite; Infinity and NaN have become strings.
  if (!field->is_number() || field->get<double>() < min || field->get<double>() > max) {
    *status = Wrong(name, absl::StrCat("a number from ", min, " to ", max), *field);
    return;
  }
  *out = static_cast<float>(field->get<double>());
}

void ConfigFields::Epsilon(const std::string& name, float* out, absl::Status* status) const {
  std::optional<float> value;
  OptionalFloat(name, 1e-30, 1.0, &value, status);
  if (value.has_value()) *out = *value;
}

bool ConfigFields::TokenIds(const std::string& name, int64_t limit, std::vector<int32_t>* out,
                            absl::Status* status) const {
  const json* field = FindValue(name, *status);
  if (field == nullptr) return false;
  out->clear();
  const std::string expected =
      absl::StrCat("a token id from 0 to ", limit, ", or a list of at most ", kMaxTokenIds);
  if (field->is_array() && field->size() <= kMaxTokenIds) {
    for (const json& id : *field) {
      if (!IntInRange(id, 0, limit)) {
        *status = Wrong(name, expected, *field);
        return false;
      }
      out->push_back(id.get<int32_t>());
    }
    return true;
  }
  if (!IntInRange(*field, 0, limit)) {
    *status = Wrong(name, expected, *field);
    return false;
  }
  out->push_back(field->get<int32_t>());
  return true;
}

}  // namespace vivarium::engine
