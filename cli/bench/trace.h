// Traces of real traffic: when requests came, and how long they were.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::cli::bench {

inline constexpr size_t kMaxTraceRows = 1'000'000;
inline constexpr int64_t kMaxTraceTokens = 10'000'000;  // of one row, each way
inline constexpr size_t kMaxHashIds = 100'000;          // of one row
inline constexpr int32_t kTraceBlockTokens = 512;       // that one hash id stands for

struct TraceRow {
  double at_s = 0;  // since the first row
  int32_t input_tokens = 0;
  int32_t output_tokens = 0;
  std::vector<int64_t> hash_ids;  // equal ids at equal places: equal blocks of the prompt
};

// By its first character: '{' = JSON lines as Mooncake published them (`timestamp` in milliseconds,
// `input_length`, `output_length`, `hash_ids`), else CSV as Azure published it in 2023
// (TIMESTAMP,ContextTokens,GeneratedTokens). Rows in order of time.
// INVALID_ARGUMENT naming `name`, line, what was found and what is expected.
absl::StatusOr<std::vector<TraceRow>> ParseTrace(std::string_view contents,
                                                 const std::string& name);

}  // namespace vivarium::cli::bench
