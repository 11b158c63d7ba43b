#include "server/validate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/text/utf8.h"
#include "server/errors.h"
#include "statestore/state_id.h"

namespace vivarium::server {
namespace {

bool IsNameChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

std::string Quoted(std::string_view text) {
  return absl::StrCat("\"", absl::string_view(text.data(), text.size()), "\"");
}

std::string Name(std::string_view field, std::string_view part) {
  return absl::StrCat(absl::string_view(field.data(), field.size()),
                      absl::string_view(part.data(), part.size()));
}

}  // namespace

absl::Status CheckRange(std::string_view field, double value, double min, double max) {
  if (value >= min && value <= max) return absl::OkStatus();  // never true of NaN
  return InvalidField(field, absl::StrCat(value), absl::StrCat(min, " .. ", max));
}

absl::Status CheckIntRange(std::string_view field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return InvalidField(field, absl::StrCat(value), absl::StrCat(min, " .. ", max));
}

absl::Status CheckCount(std::string_view field, size_t count, size_t max) {
  if (count <= max) return absl::OkStatus();
  return InvalidField(field, absl::StrCat(count, " items"), absl::StrCat("at most ", max));
}

absl::Status CheckName(std::string_view field, std::string_view name) {
  if (!name.empty() && name.size() <= statestore::kMaxSessionNameBytes &&
      std::all_of(name.begin(), name.end(), IsNameChar)) {
    return absl::OkStatus();
  }
  return InvalidField(field, Quoted(name), "1 .. 128 characters of A-Z a-z 0-9 . _ -");
}

absl::Status CheckStateId(std::string_view field, std::string_view id) {
  if (statestore::ValidateStateId(id).ok()) return absl::OkStatus();
  return InvalidField(field, Quoted(id),
                      "a state's id: st_ and 26 characters of Crockford's base32, lower case");
}

absl::Status CheckRequestId(std::string_view id) {
  if (id.size() > statestore::kMaxRequestIdBytes) {
    return InvalidField("request_id", absl::StrCat(id.size(), " bytes"),
                        absl::StrCat("at most ", statestore::kMaxRequestIdBytes));
  }
  return CheckUtf8("request_id", id);
}

absl::Status CheckLabels(const statestore::Labels& labels) {
  absl::Status status = CheckCount("labels", labels.size(), statestore::kMaxLabels);
  for (const auto& [key, value] : labels) {
    if (!status.ok()) break;
    if (key.empty() || key.size() > statestore::kMaxLabelBytes) {
      status = InvalidField("labels", Quoted(key), "keys of 1 .. 128 bytes");
    } else if (value.size() > statestore::kMaxLabelBytes) {
      status = InvalidField(Name("labels.", key), absl::StrCat(value.size(), " bytes"),
                            "at most 128 bytes");
    } else {
      status = CheckUtf8("labels", key);
      if (status.ok()) status = CheckUtf8("labels", value);
    }
  }
  return status;
}

absl::Status CheckTokenIds(std::string_view field, std::span<const int32_t> ids,
                           int64_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return InvalidField(Name(field, absl::StrCat("[", i, "]")), absl::StrCat(ids[i]),
                          absl::StrCat("0 .. ", vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckUtf8(std::string_view field, std::string_view text) {
  const std::optional<size_t> offset = engine::FindInvalidUtf8(text);
  if (!offset) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("no UTF-8 from byte ", *offset), "UTF-8");
}

}  // namespace vivarium::server
