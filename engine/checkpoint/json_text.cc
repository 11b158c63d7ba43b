#include "engine/checkpoint/json_text.h"

#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/mapped_file.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;

// Replacements keep the length, so that the parser's byte offsets stay true.
struct SpecialNumber {
  std::string_view token;
  std::string_view replacement;
};
constexpr SpecialNumber kSpecialNumbers[] = {
    {"-Infinity", "\"-inf\"   "}, {"Infinity", "\"+inf\"  "}, {"NaN", "\"~\""}};

// One pass outside strings: bounds the nesting and replaces the special numbers.
absl::Status BoundAndReplace(const std::string& file, size_t base_offset, std::string* text) {
  bool in_string = false;
  int depth = 0;
  for (size_t i = 0; i < text->size(); ++i) {
    const char c = (*text)[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) {
        return MalformedFile(file, "JSON", base_offset + i,
                             absl::StrCat("at most ", kMaxJsonDepth, " levels of nesting"), "more");
      }
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (c == '-' || c == 'I' || c == 'N') {
      for (const SpecialNumber& special : kSpecialNumbers) {
        if (text->compare(i, special.token.size(), special.token) != 0) continue;
        text->replace(i, special.token.size(), special.replacement);
        i += special.token.size() - 1;
        break;
      }
    }
  }
  return absl::OkStatus();
}

// Throws nothing itself; nlohmann's exceptions are caught by the caller.
json ParseUniqueKeys(const std::string& text, std::string* duplicate_key) {
  std::vector<std::set<std::string>> keys_by_depth;
  const json::parser_callback_t check_keys = [&](int depth, json::parse_event_t event,
                                                 json& parsed) {
    const size_t level = static_cast<size_t>(depth);
    if (event == json::parse_event_t::object_start) {
      if (keys_by_depth.size() < level + 2) keys_by_depth.resize(level + 2);
      keys_by_depth[level + 1].clear();
    } else if (event == json::parse_event_t::key) {
      auto key = parsed.get<std::string>();
      if (!keys_by_depth[level].insert(key).second && duplicate_key->empty()) {
        *duplicate_key = Quoted(key);
      }
    }
    return true;
  };
  return json::parse(text, check_keys);
}

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& file, size_t base_offset) {
  std::string copy(text);
  if (absl::Status status = BoundAndReplace(file, base_offset, &copy); !status.ok()) return status;
  std::string duplicate_key;
  json parsed;
  try {
    parsed = ParseUniqueKeys(copy, &duplicate_key);
  } catch (const json::parse_error& error) {
    return MalformedFile(file, "JSON", base_offset + (error.byte > 0 ? error.byte - 1 : 0),
                         "well-formed JSON", Quoted(error.what()));
  } catch (const json::exception& error) {  // e.g. a number outside double's range
    return MalformedFile(file, "JSON", base_offset, "well-formed JSON", Quoted(error.what()));
  }
  if (!duplicate_key.empty()) {
    return MalformedFile(file, absl::StrCat("key ", duplicate_key), base_offset,
                         "each key once in its object", "it twice");
  }
  return parsed;
}

absl::StatusOr<json> ReadJsonObject(const std::string& path, size_t max_bytes) {
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const std::span<const std::byte> bytes = (*file)->bytes();
  if (bytes.size() > max_bytes) {
    return MalformedField(path, "size", absl::StrCat("at most ", max_bytes, " bytes"),
                          absl::StrCat(bytes.size()));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  absl::StatusOr<json> parsed = ParseJson(text, path, 0);
  if (parsed.ok() && !parsed->is_object()) {
    return MalformedFile(path, "JSON", 0, "an object", parsed->type_name());
  }
  return parsed;
}

std::string DescribeJson(const json& value) {
  constexpr size_t kMaxBytes = 80;
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMaxBytes) text = text.substr(0, kMaxBytes) + "...";
  return text;
}

}  // namespace vivarium::engine
