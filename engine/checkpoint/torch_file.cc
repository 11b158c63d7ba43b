#include "engine/checkpoint/torch_file.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/tensor_pickle.h"
#include "engine/checkpoint/zip_archive.h"

namespace vivarium::engine {
namespace {

constexpr std::string_view kPickleSuffix = "/data.pkl";

std::optional<kernels::DType> StorageDType(std::string_view type) {
  if (type == "FloatStorage") return kernels::DType::kF32;
  if (type == "HalfStorage") return kernels::DType::kF16;
  if (type == "BFloat16Storage") return kernels::DType::kBF16;
  return std::nullopt;
}

uint64_t OffsetIn(std::span<const std::byte> file, std::span<const std::byte> part) {
  return static_cast<uint64_t>(part.data() - file.data());
}

// Row-major, but for dimensions of one element, whose stride means nothing.
bool IsContiguous(const PickledTensor& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.shape.size(); i > 0; --i) {
    if (tensor.shape[i - 1] != 1 && tensor.strides[i - 1] != expected) return false;
    if (__builtin_mul_overflow(expected, tensor.shape[i - 1], &expected)) return false;
  }
  return true;
}

absl::StatusOr<TensorView> ResolveTensor(const std::string& name, const PickledTensor& tensor,
                                         kernels::DType dtype, std::span<const std::byte> storage,
                                         uint64_t storage_offset, const std::string& file) {
  const std::string what = absl::StrCat("tensor ", Quoted(name));
  const uint64_t element_bytes = kernels::DTypeBytes(dtype);
  if (static_cast<uint64_t>(tensor.storage_count) != storage.size() / element_bytes ||
      storage.size() % element_bytes != 0) {
    return MalformedFile(
        file, absl::StrCat("storage ", Quoted(tensor.storage_key)), storage_offset,
        absl::StrCat(tensor.storage_count, " elements of ", element_bytes, " bytes"),
        absl::StrCat(storage.size(), " bytes"));
  }
  const std::optional<uint64_t> bytes = CheckedTensorBytes(tensor.shape, element_bytes);
  const uint64_t begin = static_cast<uint64_t>(tensor.offset);
  if (!bytes || begin > storage.size() / element_bytes ||
      *bytes > storage.size() - begin * element_bytes) {
    return MalformedFile(file, what, storage_offset,
                         absl::StrCat("shape ", ShapeText(tensor.shape), " from element ", begin,
                                      " inside its storage"),
                         absl::StrCat(tensor.storage_count, " elements"));
  }
  if (*bytes > 0 && !IsContiguous(tensor)) {
    return MalformedFile(file, what, storage_offset,
                         absl::StrCat("contiguous strides for shape ", ShapeText(tensor.shape)),
                         ShapeText(tensor.strides));
  }
  return TensorView{dtype, tensor.shape, storage.subspan(begin * element_bytes, *bytes), file,
                    storage_offset + begin * element_bytes};
}

// "<top>/data.pkl" -> "<top>"; there must be one.
absl::StatusOr<std::string> FindTop(const ZipMembers& members, const std::string& file) {
  std::string top;
  int count = 0;
  for (const auto& [name, data] : members) {
    if (!std::string_view(name).ends_with(kPickleSuffix)) continue;
    top = name.substr(0, name.size() - kPickleSuffix.size());
    ++count;
  }
  if (count == 1) return top;
  return MalformedField(file, "zip members", "one '.../data.pkl'", absl::StrCat(count));
}

}  // namespace

absl::StatusOr<TensorTable> ParseTorchFile(std::span<const std::byte> bytes,
                                           const std::string& file) {
  absl::StatusOr<ZipMembers> members = ReadStoredZip(bytes, file);
  if (!members.ok()) return members.status();
  absl::StatusOr<std::string> top = FindTop(*members, file);
  if (!top.ok()) return top.status();
  if (const auto order = members->find(absl::StrCat(*top, "/byteorder"));
      order != members->end() &&
      std::string_view(reinterpret_cast<const char*>(order->second.data()), order->second.size()) !=
          "little") {
    return MalformedFile(file, "byte order", OffsetIn(bytes, order->second), "little", "another");
  }
  const std::span<const std::byte> pickle =
      members->find(absl::StrCat(*top, std::string(kPickleSuffix)))->second;
  absl::StatusOr<std::map<std::string, PickledTensor>> tensors =
      ReadTensorPickle(pickle, file, OffsetIn(bytes, pickle));
  if (!tensors.ok()) return tensors.status();

  TensorTable table;
  for (const auto& [name, tensor] : *tensors) {
    const std::optional<kernels::DType> dtype = StorageDType(tensor.storage_type);
    if (!dtype) {
      table.skipped.emplace(name, tensor.storage_type);
      continue;
    }
    const auto storage = members->find(absl::StrCat(*top, "/data/", tensor.storage_key));
    if (storage == members->end()) {
      return MalformedField(file, absl::StrCat("tensor ", Quoted(name)),
                            absl::StrCat("a zip member for storage ", Quoted(tensor.storage_key)),
                            "none");
    }
    absl::StatusOr<TensorView> view = ResolveTensor(name, tensor, *dtype, storage->second,
                                                    OffsetIn(bytes, storage->second), file);
    if (!view.ok()) return view.status();
    table.tensors.emplace(name, *std::move(view));
  }
  return table;
}

}  // namespace vivarium::engine
