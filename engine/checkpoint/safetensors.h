// The safetensors format: u64 header length (little-endian), a JSON header, the tensors' bytes.
// https://github.com/huggingface/safetensors#format
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint/tensor_table.h"

namespace vivarium::engine {

// The format allows 100 MB; a header of this size already lists over 200,000 tensors.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 32 << 20;
inline constexpr size_t kMaxTensorsPerFile = 1 << 18;

// The tensors of `bytes`, the whole file `file`; views point into `bytes`. As the format demands,
// the tensors must cover the data part without hole or overlap. INVALID_ARGUMENT naming file,
// tensor, offset, expected and found.
absl::StatusOr<TensorTable> ParseSafetensors(std::span<const std::byte> bytes,
                                             const std::string& file);

}  // namespace vivarium::engine
