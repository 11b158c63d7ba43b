#include "engine/model/weight_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/tensor_table.h"

namespace vivarium::engine {
namespace {

using kernels::DType;

int64_t ElementCount(const TensorView& view) {
  return static_cast<int64_t>(view.data.size() / kernels::DTypeBytes(view.dtype));
}

// Whether `view`'s elements lie at their natural alignment, as Backend::Pack may assume.
bool IsAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data.data()) % kernels::DTypeBytes(view.dtype) == 0;
}

// Writes `count` elements of `src` (dtype `from`, any alignment) as `to` (kF32 or kBF16) to `dst`;
// `staging` has room for count floats.
void ConvertElements(const std::byte* src, DType from, size_t count, DType to, float* staging,
                     std::byte* dst) {
  if (from == to) {
    std::memcpy(dst, src, count * kernels::DTypeBytes(to));
    return;
  }
  kernels::ConvertToF32(src, from, count, staging);
  if (to == DType::kF32) {
    std::memcpy(dst, staging, count * sizeof(float));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const uint16_t bits = kernels::F32ToBF16(staging[i]);
    std::memcpy(dst + 2 * i, &bits, sizeof(bits));
  }
}

}  // namespace

absl::Status OutOfDeviceMemory(const std::string& what, uint64_t bytes, uint64_t held_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("no device memory left for ", what, ": it needs ", bytes, " bytes, beside ",
                   held_bytes, " bytes that this model already holds"));
}

const TensorView* FindTensor(const Checkpoint& checkpoint, const std::string& canonical_name) {
  const TensorView* view = checkpoint.Find(canonical_name);
  if (view == nullptr && canonical_name == kEmbeddingName) {
    view = checkpoint.Find("backbone.embedding.weight");
  }
  return view;
}

absl::StatusOr<const TensorView*> WeightReader::Require(const std::string& name,
                                                        std::span<const int64_t> shape) const {
  const TensorView* view = FindTensor(checkpoint_, name);
  if (view == nullptr) {
    const auto skipped = checkpoint_.skipped().find(name);
    return MalformedField(checkpoint_.files().empty() ? "checkpoint" : checkpoint_.files().front(),
                          absl::StrCat("tensor ", Quoted(name)),
                          absl::StrCat("shape ", ShapeText(shape)),
                          skipped == checkpoint_.skipped().end()
                              ? "no such tensor"
                              : absl::StrCat("dtype ", skipped->second, ", which is not served"));
  }
  if (!std::equal(view->shape.begin(), view->shape.end(), shape.begin(), shape.end())) {
    return MalformedFile(view->file, absl::StrCat("tensor ", Quoted(name)), view->file_offset,
                         absl::StrCat("shape ", ShapeText(shape)), ShapeText(view->shape));
  }
  return view;
}

absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> WeightReader::Matrix(const std::string& name,
                                                                            int64_t rows,
                                                                            int64_t cols) {
  const int64_t shape[] = {rows, cols};
  absl::StatusOr<const TensorView*> view = Require(name, shape);
  if (!view.ok()) return view.status();
  const void* source = (*view)->data.data();
  std::vector<uint32_t> aligned;
  if (!IsAligned(**view)) {
    aligned.resize((*view)->data.size() / sizeof(uint32_t) + 1);
    std::memcpy(aligned.data(), source, (*view)->data.size());
    source = aligned.data();
  }
  std::unique_ptr<kernels::PackedMatrix> packed =
      backend_->Pack(source, (*view)->dtype, rows, cols, matrix_dtype_);
  if (packed == nullptr) {
    return OutOfDeviceMemory(
        absl::StrCat("tensor ", Quoted(name), " ", ShapeText(shape)),
        static_cast<uint64_t>(rows * cols) * kernels::DTypeBytes(matrix_dtype_), device_bytes_);
  }
  device_bytes_ += packed->bytes();
  return packed;
}

absl::StatusOr<EmbeddingTable> WeightReader::Embedding(const std::string& name, int64_t rows,
                                                       int64_t cols) {
  const int64_t shape[] = {rows, cols};
  absl::StatusOr<const TensorView*> view = Require(name, shape);
  if (!view.ok()) return view.status();
  const size_t count = static_cast<size_t>(rows * cols);
  const size_t element_bytes = kernels::DTypeBytes(matrix_dtype_);
  DeviceMemory memory(backend_, count * element_bytes);
  if (memory.data() == nullptr) {
    return OutOfDeviceMemory(absl::StrCat("tensor ", Quoted(name), " ", ShapeText(shape)),
                             count * element_bytes, device_bytes_);
  }
  const size_t block = std::min(count, kMaxStagingBytes / (2 * sizeof(float)));
  std::vector<float> staging(block);
  std::vector<std::byte> converted(block * element_bytes);
  const std::byte* source = (*view)->data.data();
  for (size_t begin = 0; begin < count; begin += block) {
    const size_t size = std::min(block, count - begin);
    ConvertElements(source + begin * kernels::DTypeBytes((*view)->dtype), (*view)->dtype, size,
                    matrix_dtype_, staging.data(), converted.data());
    backend_->CopyToDevice(static_cast<std::byte*>(memory.data()) + begin * element_bytes,
                           converted.data(), size * element_bytes);
  }
  device_bytes_ += memory.bytes();
  return EmbeddingTable{std::move(memory), matrix_dtype_};
}

absl::StatusOr<DeviceMemory> WeightReader::Vector(const std::string& name,
                                                  std::span<const int64_t> shape,
                                                  const Arrange& arrange) {
  absl::StatusOr<const TensorView*> view = Require(name, shape);
  if (!view.ok()) return view.status();
  std::vector<float> values(static_cast<size_t>(ElementCount(**view)));
  kernels::ConvertToF32((*view)->data.data(), (*view)->dtype, values.size(), values.data());
  if (arrange) values = arrange(values);
  DeviceMemory memory(backend_, values.size() * sizeof(float));
  if (memory.data() == nullptr) {
    return OutOfDeviceMemory(absl::StrCat("tensor ", Quoted(name)), values.size() * sizeof(float),
                             device_bytes_);
  }
  backend_->CopyToDevice(memory.data(), values.data(), memory.bytes());
  device_bytes_ += memory.bytes();
  return memory;
}

absl::StatusOr<DeviceMemory> WeightReader::Vector(const std::string& name, int64_t size) {
  const int64_t shape[] = {size};
  return Vector(name, shape, nullptr);
}

}  // namespace vivarium::engine
