// Checkpoint: the tensors of a model directory, memory-mapped, by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace vivarium::engine {

// A view of one tensor's bytes, row-major, little-endian, in the mapped file (any alignment).
struct TensorView {
  kernels::DType dtype;
  std::vector<int64_t> shape;       // at most kMaxTensorRank dimensions, each >= 0
  std::span<const std::byte> data;  // exactly product(shape) * DTypeBytes(dtype) bytes
  std::string file;                 // for error messages
  uint64_t file_offset;             // of data, in bytes
};
inline constexpr int kMaxTensorRank = 8;

// The weight files of a directory: `model.safetensors`, or the shards that
// `model.safetensors.index.json` names, or `pytorch_model.bin` (a zip of raw storages and a pickle
// that may only build tensors; anything else in it is refused), in this order of preference. Names
// are those of the files; WeightReader (engine/model) maps them to roles. Tensors of other dtypes
// than f32, bf16, f16, int8 are kept out of tensors() and only listed in skipped().
//
// Immutable and thread-safe. Views live as long as the Checkpoint.
class Checkpoint {
 public:
  // NOT_FOUND when the directory has no weight file; INVALID_ARGUMENT, naming file, tensor, offset,
  // the expected and the found value, when one is malformed. Never reads outside a file.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  virtual ~Checkpoint() = default;

  // Null when there is no tensor of that name.
  virtual const TensorView* Find(std::string_view name) const = 0;
  virtual const std::map<std::string, TensorView, std::less<>>& tensors() const = 0;
  // Tensors kept out, with the file's word for their dtype.
  virtual const std::map<std::string, std::string, std::less<>>& skipped() const = 0;
  // The pages of `view`, one of tensors(), need not stay in memory: they are read again when they
  // are next looked at. So a load holds one tensor of the file at a time, not all.
  virtual void Release(const TensorView& view) const = 0;
  // The files read, as paths.
  virtual const std::vector<std::string>& files() const = 0;
};

}  // namespace vivarium::engine
