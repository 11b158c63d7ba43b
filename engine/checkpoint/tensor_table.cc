#include "engine/checkpoint/tensor_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace vivarium::engine {

std::optional<uint64_t> CheckedTensorBytes(std::span<const int64_t> shape, uint64_t element_bytes) {
  int64_t total = static_cast<int64_t>(element_bytes);
  bool is_empty = false;
  for (const int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    // An empty tensor must not hide an overflow of the other extents.
    if (extent == 0) {
      is_empty = true;
    } else if (__builtin_mul_overflow(total, extent, &total)) {
      return std::nullopt;
    }
  }
  return is_empty ? 0 : static_cast<uint64_t>(total);
}

std::string ShapeText(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

}  // namespace vivarium::engine
