// A pickle reader that can build nothing but a dictionary of tensors.
//
// Python's pickle is a program that may call anything. This reader knows the opcodes that
// torch.save uses for a state dict and an exact list of names; any other opcode or name is refused
// before anything is made of it. Opcodes: Python's pickletools.py; the calls: torch/_utils.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::engine {

inline constexpr uint64_t kMaxPickleBytes = 32 << 20;
inline constexpr size_t kMaxPickleValues = 1 << 21;  // made; and remembered
inline constexpr size_t kMaxPickleMarks = 64;        // open at once

// A tensor as the pickle describes it: a view of a storage, in elements.
struct PickledTensor {
  std::string storage_type;  // "FloatStorage", "HalfStorage", "BFloat16Storage", ...
  std::string storage_key;   // the storage's name in the archive
  int64_t storage_count;     // elements of the storage; >= 0
  int64_t offset;            // of the first element; >= 0
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // as many as shape
};

// Runs the pickle in `bytes`, which begin at `base_offset` of `file`. INVALID_ARGUMENT naming file,
// offset, expected and found.
absl::StatusOr<std::map<std::string, PickledTensor>> ReadTensorPickle(
    std::span<const std::byte> bytes, const std::string& file, uint64_t base_offset);

}  // namespace vivarium::engine
