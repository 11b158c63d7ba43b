// Checks of single fields, each INVALID_ARGUMENT naming field, value and what is expected.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "statestore/state_store.h"

namespace vivarium::server {

absl::Status CheckRange(std::string_view field, double value, double min, double max);
absl::Status CheckIntRange(std::string_view field, int64_t value, int64_t min, int64_t max);
absl::Status CheckCount(std::string_view field, size_t count, size_t max);
// A session's name, or a backup's.
absl::Status CheckName(std::string_view field, std::string_view name);
absl::Status CheckStateId(std::string_view field, std::string_view id);
absl::Status CheckRequestId(std::string_view id);
absl::Status CheckLabels(const statestore::Labels& labels);
absl::Status CheckTokenIds(std::string_view field, std::span<const int32_t> ids,
                           int64_t vocab_size);
absl::Status CheckUtf8(std::string_view field, std::string_view text);

}  // namespace vivarium::server
