// JSON of model directories: bounded, and tolerant of Python's Infinity, -Infinity and NaN.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace vivarium::engine {

inline constexpr int kMaxJsonDepth = 64;

// Parses `text`; `file` and `base_offset` (of text in the file) serve error messages. The tokens
// Infinity, -Infinity and NaN, which Python's json writes, become the strings kJsonInfinity,
// kJsonMinusInfinity and kJsonNaN. INVALID_ARGUMENT for anything else that is no JSON, for nesting
// deeper than kMaxJsonDepth and for an object that has a key twice.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& file,
                                         size_t base_offset);
inline constexpr std::string_view kJsonInfinity = "+inf";
inline constexpr std::string_view kJsonMinusInfinity = "-inf";
inline constexpr std::string_view kJsonNaN = "~";

// Reads and parses a file of at most `max_bytes`, whose top level must be an object. NOT_FOUND when
// there is none.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path, size_t max_bytes);

// A value for an error message: its text, cut to 80 bytes.
std::string DescribeJson(const nlohmann::json& value);

}  // namespace vivarium::engine
