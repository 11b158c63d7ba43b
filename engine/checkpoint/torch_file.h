// `pytorch_model.bin`: what torch.save writes of a state dict since PyTorch 1.6, a zip archive with
// `<top>/data.pkl` (the dictionary) and `<top>/data/<key>` (raw storages, little-endian).
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint/tensor_table.h"

namespace vivarium::engine {

// The tensors of `bytes`, the whole file `file`; views point into `bytes` and may share storage.
// INVALID_ARGUMENT naming file, tensor, offset, expected and found; tensors must be contiguous.
absl::StatusOr<TensorTable> ParseTorchFile(std::span<const std::byte> bytes,
                                           const std::string& file);

}  // namespace vivarium::engine
