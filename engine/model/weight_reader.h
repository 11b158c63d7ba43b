// WeightReader: takes tensors out of a Checkpoint by canonical name, checks their shapes, and puts
// them on a device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/model/device_memory.h"
#include "kernels/backend.h"

namespace vivarium::engine {

// Canonical names are Hugging Face's; state-spaces differs in "backbone.embedding.weight" only.
inline constexpr char kEmbeddingName[] = "backbone.embeddings.weight";
inline constexpr char kFinalNormName[] = "backbone.norm_f.weight";
inline constexpr char kHeadName[] = "lm_head.weight";

// The tensor of that canonical name, or null.
const TensorView* FindTensor(const Checkpoint& checkpoint, const std::string& canonical_name);

// An embedding table on the device.
struct EmbeddingTable {
  DeviceMemory memory;   // [rows, cols] row-major
  kernels::DType dtype;  // kF32 or kBF16
};

// Not thread-safe. Holds no tensor: each call reads the mapped file and writes the device, with a
// host buffer of at most kMaxStagingBytes in between.
class WeightReader {
 public:
  // Matrices and the embedding are held as `matrix_dtype` (kF32 or kBF16); vectors as f32.
  // `checkpoint` and `backend` must outlive the reader.
  WeightReader(const Checkpoint& checkpoint, kernels::Backend* backend, kernels::DType matrix_dtype)
      : checkpoint_(checkpoint), backend_(backend), matrix_dtype_(matrix_dtype) {}

  bool Has(const std::string& name) const { return FindTensor(checkpoint_, name) != nullptr; }
  // INVALID_ARGUMENT when there is no such tensor or it has another shape.
  absl::StatusOr<const TensorView*> Require(const std::string& name,
                                            std::span<const int64_t> shape) const;

  // All but Require: also RESOURCE_EXHAUSTED when the device has no memory left.
  absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> Matrix(const std::string& name,
                                                                int64_t rows, int64_t cols);
  absl::StatusOr<EmbeddingTable> Embedding(const std::string& name, int64_t rows, int64_t cols);
  // The tensor's elements as f32, given to `arrange`, whose result goes to the device.
  using Arrange = std::function<std::vector<float>(const std::vector<float>&)>;
  absl::StatusOr<DeviceMemory> Vector(const std::string& name, std::span<const int64_t> shape,
                                      const Arrange& arrange);
  absl::StatusOr<DeviceMemory> Vector(const std::string& name, int64_t size);

  uint64_t device_bytes() const { return device_bytes_; }  // put on the device so far
  static constexpr size_t kMaxStagingBytes = 4 << 20;      // of Embedding's conversion

 private:
  const Checkpoint& checkpoint_;
  kernels::Backend* const backend_;
  const kernels::DType matrix_dtype_;
  uint64_t device_bytes_ = 0;
};

// RESOURCE_EXHAUSTED naming what was to be allocated, its size and what is already held.
absl::Status OutOfDeviceMemory(const std::string& what, uint64_t bytes, uint64_t held_bytes);

}  // namespace vivarium::engine
