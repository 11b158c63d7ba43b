// Writes NumPy's .npy files, format version 1.0: little-endian float32, C order.
// Format: NEP 1, "A Simple File Format for NumPy Arrays".
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/output_file.h"

namespace vivarium::cli {

// Takes an array piece by piece; the file appears when Finish succeeds. Not thread-safe.
class NpyWriter {
 public:
  // `shape`: every dimension >= 0. UNAVAILABLE naming the file when it can't be written.
  static absl::StatusOr<std::unique_ptr<NpyWriter>> Create(const std::string& path,
                                                           const std::vector<int64_t>& shape);
  // The next values in C order. Never more than the shape has in all.
  absl::Status Append(std::span<const float> values);
  // After the last value.
  absl::Status Finish();

 private:
  NpyWriter(std::unique_ptr<OutputFile> file, uint64_t num_values)
      : file_(std::move(file)), missing_values_(num_values) {}

  std::unique_ptr<OutputFile> file_;
  uint64_t missing_values_;
};

// The whole array at once.
absl::Status WriteNpy(const std::string& path, const std::vector<int64_t>& shape,
                      std::span<const float> values);

}  // namespace vivarium::cli
