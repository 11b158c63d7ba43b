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
// An int8 matrix "<name>" has the scales of its rows, f32 [rows], in "<name>_scale".
inline constexpr char kScaleSuffix[] = "_scale";

// How matrices are held on the device.
struct WeightDTypes {
  kernels::DType matrix;      // kF32 or kBF16
  kernels::DType projection;  // likewise, or kI8: of in_proj, out_proj and the head
};

// The tensor of that canonical name, or null.
const TensorView* FindTensor(const Checkpoint& checkpoint, const std::string& canonical_name);

// Not thread-safe. Holds no tensor: each call reads the mapped file and writes the device.
class WeightReader {
 public:
  // Vectors are held as f32. `checkpoint` and `backend` must outlive the reader.
  WeightReader(const Checkpoint& checkpoint, kernels::Backend* backend, const WeightDTypes& dtypes)
      : checkpoint_(checkpoint), backend_(backend), dtypes_(dtypes) {}

  bool Has(const std::string& name) const { return FindTensor(checkpoint_, name) != nullptr; }
  // INVALID_ARGUMENT when there is no such tensor, it has another shape, or is int8.
  absl::StatusOr<const TensorView*> Require(const std::string& name,
                                            std::span<const int64_t> shape) const;

  // All but Require: also RESOURCE_EXHAUSTED when the device has no memory left.
  absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> Matrix(const std::string& name,
                                                                int64_t rows, int64_t cols);
  // The same for a matrix that may be int8: in the file, with its scales, or quantised here
  // (kernels/quantize.h). Both give the same bits.
  absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> Projection(const std::string& name,
                                                                    int64_t rows, int64_t cols);
  // The tensor's elements as f32, given to `arrange`, whose result goes to the device.
  using Arrange = std::function<std::vector<float>(const std::vector<float>&)>;
  absl::StatusOr<DeviceMemory> Vector(const std::string& name, std::span<const int64_t> shape,
                                      const Arrange& arrange);
  absl::StatusOr<DeviceMemory> Vector(const std::string& name, int64_t size);

  uint64_t device_bytes() const { return device_bytes_; }  // put on the device so far

 private:
  absl::StatusOr<const TensorView*> RequireShape(const std::string& name,
                                                 std::span<const int64_t> shape) const;
  // Counts what was packed (null: memory ran out), and lets the tensor's pages go.
  absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> Held(
      const std::string& name, const TensorView& view, kernels::DType to,
      std::unique_ptr<kernels::PackedMatrix> packed);

  const Checkpoint& checkpoint_;
  kernels::Backend* const backend_;
  const WeightDTypes dtypes_;
  uint64_t device_bytes_ = 0;
};

// RESOURCE_EXHAUSTED naming what was to be allocated, its size and what is already held.
absl::Status OutOfDeviceMemory(const std::string& what, uint64_t bytes, uint64_t held_bytes);

}  // namespace vivarium::engine
