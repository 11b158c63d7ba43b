// TensorTable: what one weight file holds, and the arithmetic of its tensors' sizes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "engine/checkpoint/checkpoint.h"

namespace vivarium::engine {

struct TensorTable {
  std::map<std::string, TensorView, std::less<>> tensors;
  // Tensors of other dtypes than f32, bf16 and f16, with the file's word for their dtype.
  std::map<std::string, std::string, std::less<>> skipped;
};

// Product of `shape` times `element_bytes`, or nothing when a dimension is negative or the product
// exceeds 2^63 - 1.
std::optional<uint64_t> CheckedTensorBytes(std::span<const int64_t> shape, uint64_t element_bytes);

// "[2, 3]".
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace vivarium::engine
