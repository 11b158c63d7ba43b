// Page sizes of lists, as AIP-158 has them.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace vivarium::server {

inline constexpr int32_t kDefaultPageSize = 100;

// 0 = the default; more than the store's maximum = that. INVALID_ARGUMENT below 0.
absl::StatusOr<int> ParsePageSize(int32_t page_size);

}  // namespace vivarium::server
