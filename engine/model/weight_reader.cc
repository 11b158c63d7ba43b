#include "engine/model/weight_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/tensor_table.h"
#include "kernels/quantize.h"

namespace vivarium::engine {
namespace {

using kernels::DType;

int64_t ElementCount(const TensorView& view) {
  return static_cast<int64_t>(view.data.size() / kernels::DTypeBytes(view.dtype));
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
  absl::StatusOr<const TensorView*> view = RequireShape(name, shape);
  if (view.ok() && (*view)->dtype == DType::kI8) {
    return MalformedFile((*view)->file, absl::StrCat("tensor ", Quoted(name)), (*view)->file_offset,
                         "dtype F32, BF16 or F16",
                         "I8, which is for in_proj, out_proj and the head of an int8 model");
  }
  return view;
}

absl::StatusOr<const TensorView*> WeightReader::RequireShape(const std::string& name,
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

absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> WeightReader::Held(
    const std::string& name, const TensorView& view, DType to,
    std::unique_ptr<kernels::PackedMatrix> packed) {
  checkpoint_.Release(view);
  if (packed == nullptr) {
    const auto count = static_cast<uint64_t>(ElementCount(view));
    return OutOfDeviceMemory(absl::StrCat("tensor ", Quoted(name), " ", ShapeText(view.shape)),
                             count * kernels::DTypeBytes(to), device_bytes_);
  }
  device_bytes_ += packed->bytes();
  return packed;
}

absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> WeightReader::Matrix(const std::string& name,
                                                                            int64_t rows,
                                                                            int64_t cols) {
  const int64_t shape[] = {rows, cols};
  absl::StatusOr<const TensorView*> view = Require(name, shape);
  if (!view.ok()) return view.status();
  return Held(name, **view, dtypes_.matrix,
              backend_->Pack((*view)->data.data(), (*view)->dtype, rows, cols, dtypes_.matrix));
}

absl::StatusOr<std::unique_ptr<kernels::PackedMatrix>> WeightReader::Projection(
    const std::string& name, int64_t rows, int64_t cols) {
  if (dtypes_.projection != DType::kI8) return Matrix(name, rows, cols);
  const int64_t shape[] = {rows, cols};
  absl::StatusOr<const TensorView*> view = RequireShape(name, shape);
  if (!view.ok()) return view.status();
  std::vector<float> scales(static_cast<size_t>(rows));
  std::vector<int8_t> quantized;
  const auto* q = reinterpret_cast<const int8_t*>((*view)->data.data());
  if ((*view)->dtype == DType::kI8) {
    const int64_t scale_shape[] = {rows};
    absl::StatusOr<const TensorView*> scale =
        Require(absl::StrCat(name, kScaleSuffix), scale_shape);
    if (!scale.ok()) return scale.status();
    kernels::ConvertToF32((*scale)->data.data(), (*scale)->dtype, scales.size(), scales.data());
  } else {
    quantized.resize(static_cast<size_t>(rows * cols));
    kernels::QuantizeRows((*view)->data.data(), (*view)->dtype, rows, cols, quantized.data(),
                          scales.data());
    q = quantized.data();
  }
  return Held(name, **view, DType::kI8, backend_->PackInt8(q, scales.data(), rows, cols));
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
