// Token ids as people and files write them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::cli {

inline constexpr size_t kMaxTokenListIds = size_t{1} << 24;
inline constexpr size_t kMaxInputFileBytes = size_t{1} << 30;

// Ids apart by commas, spaces or newlines, perhaps in square brackets (so that the output of
// `tokenize --json` can be read back): "1,2,3", "[1, 2, 3]", "". INVALID_ARGUMENT naming what is no
// id in 0 .. 2^31-1, or more than kMaxTokenListIds.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(std::string_view text);

// "1,2,3" or "@FILE" with such text in it ("@-" = standard input).
absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const std::string& list_or_file);

// The bytes of a file ("-" = standard input), at most kMaxInputFileBytes.
absl::StatusOr<std::string> ReadInputFile(const std::string& path);

}  // namespace vivarium::cli
