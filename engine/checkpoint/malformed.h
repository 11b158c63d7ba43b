// How errors about a malformed file are worded: file, place, offset, expected, found.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace vivarium::engine {

// `name` in quotes, made printable and cut to 160 bytes: names come from untrusted files.
std::string Quoted(std::string_view name);

// INVALID_ARGUMENT "FILE: WHAT at byte OFFSET: expected EXPECTED, found FOUND".
absl::Status MalformedFile(const std::string& file, const std::string& what, uint64_t offset,
                           const std::string& expected, const std::string& found);
// The same without a place in bytes (a field of a JSON file).
absl::Status MalformedField(const std::string& file, const std::string& what,
                            const std::string& expected, const std::string& found);

}  // namespace vivarium::engine
