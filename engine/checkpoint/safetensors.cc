#include "engine/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/json_text.h"
#include "engine/checkpoint/malformed.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;

struct FormatDType {
  std::string_view name;
  uint64_t bytes;
  std::optional<kernels::DType> dtype;  // empty: known to the format, of no use to a model
};
constexpr FormatDType kFormatDTypes[] = {
    {"F32", 4, kernels::DType::kF32}, {"BF16", 2, kernels::DType::kBF16},
    {"F16", 2, kernels::DType::kF16}, {"F64", 8, std::nullopt},
    {"I64", 8, std::nullopt},         {"U64", 8, std::nullopt},
    {"I32", 4, std::nullopt},         {"U32", 4, std::nullopt},
    {"I16", 2, std::nullopt},         {"U16", 2, std::nullopt},
    {"I8", 1, kernels::DType::kI8},   {"U8", 1, std::nullopt},
    {"BOOL", 1, std::nullopt},        {"F8_E4M3", 1, std::nullopt},
    {"F8_E5M2", 1, std::nullopt},     {"F8_E8M0", 1, std::nullopt},
};

const FormatDType* FindDType(std::string_view name) {
  for (const FormatDType& dtype : kFormatDTypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

// A tensor's bytes, relative to the data part, for the check of holes and overlaps.
struct Extent {
  uint64_t begin;
  uint64_t end;
  std::string name;
};

class HeaderReader {
 public:
  HeaderReader(std::span<const std::byte> bytes, const std::string& file, uint64_t header_bytes)
      : bytes_(bytes), file_(file), data_offset_(kLengthBytes + header_bytes) {}

  absl::Status AddTensor(const std::string& name, const json& entry);
  absl::Status CheckCoverage();
  TensorTable Take() { return std::move(table_); }

 private:
  uint64_t data_bytes() const { return bytes_.size() - data_offset_; }
  absl::Status Malformed(const std::string& name, const std::string& field,
                         const std::string& expected, const std::string& found) const {
    return MalformedFile(file_, absl::StrCat(field, " of tensor ", Quoted(name)), kLengthBytes,
                         expected, found);
  }
  absl::StatusOr<std::vector<int64_t>> ReadShape(const std::string& name, const json& entry) const;
  absl::StatusOr<Extent> ReadExtent(const std::string& name, const json& entry) const;

  const std::span<const std::byte> bytes_;
  const std::string& file_;
  const uint64_t data_offset_;
  std::vector<Extent> extents_;
  TensorTable table_;
};

absl::StatusOr<std::vector<int64_t>> HeaderReader::ReadShape(const std::string& name,
                                                             const json& entry) const {
  const auto field = entry.find("shape");
  if (field == entry.end() || !field->is_array()) {
    return Malformed(name, "shape", "an array",
                     field == entry.end() ? "none" : DescribeJson(*field));
  }
  if (field->size() > kMaxTensorRank) {
    return Malformed(name, "shape", absl::StrCat("at most ", kMaxTensorRank, " dimensions"),
                     absl::StrCat(field->size()));
  }
  std::vector<int64_t> shape;
  for (const json& extent : *field) {
    // Unsigned in the parser's sense: no sign, no fraction, below 2^64.
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > INT64_MAX) {
      return Malformed(name, "shape", "whole numbers from 0 to 2^63 - 1", DescribeJson(*field));
    }
    shape.push_back(extent.get<int64_t>());
  }
  return shape;
}

absl::StatusOr<Extent> HeaderReader::ReadExtent(const std::string& name, const json& entry) const {
  const auto field = entry.find("data_offsets");
  if (field == entry.end() || !field->is_array() || field->size() != 2 ||
      !(*field)[0].is_number_unsigned() || !(*field)[1].is_number_unsigned()) {
    return Malformed(name, "data_offsets", "two whole numbers",
                     field == entry.end() ? "none" : DescribeJson(*field));
  }
  Extent extent{(*field)[0].get<uint64_t>(), (*field)[1].get<uint64_t>(), name};
  if (extent.begin > extent.end || extent.end > data_bytes()) {
    return Malformed(
        name, "data_offsets",
        absl::StrCat("begin <= end <= ", data_bytes(), " (the bytes after the header)"),
        DescribeJson(*field));
  }
  return extent;
}

absl::Status HeaderReader::AddTensor(const std::string& name, const json& entry) {
  if (!entry.is_object()) return Malformed(name, "entry", "an object", DescribeJson(entry));
  const auto dtype_field = entry.find("dtype");
  if (dtype_field == entry.end() || !dtype_field->is_string()) {
    return Malformed(name, "dtype", "a string",
                     dtype_field == entry.end() ? "none" : DescribeJson(*dtype_field));
  }
  const FormatDType* dtype = FindDType(dtype_field->get_ref<const std::string&>());
  if (dtype == nullptr) {
    return Malformed(name, "dtype", "one of the format's (F32, BF16, F16, ...)",
                     DescribeJson(*dtype_field));
  }
  absl::StatusOr<std::vector<int64_t>> shape = ReadShape(name, entry);
  if (!shape.ok()) return shape.status();
  absl::StatusOr<Extent> extent = ReadExtent(name, entry);
  if (!extent.ok()) return extent.status();
  const std::optional<uint64_t> tensor_bytes = CheckedTensorBytes(*shape, dtype->bytes);
  const uint64_t found_bytes = extent->end - extent->begin;
  if (!tensor_bytes || *tensor_bytes != found_bytes) {
    return MalformedFile(
        file_, absl::StrCat("tensor ", Quoted(name)), data_offset_ + extent->begin,
        absl::StrCat(tensor_bytes ? absl::StrCat(*tensor_bytes) : std::string("fewer than 2^63"),
                     " bytes for ", DescribeJson(*dtype_field), " ", ShapeText(*shape)),
        absl::StrCat(found_bytes));
  }
  const uint64_t file_offset = data_offset_ + extent->begin;
  if (dtype->dtype) {
    table_.tensors.emplace(
        name, TensorView{*dtype->dtype, *std::move(shape), bytes_.subspan(file_offset, found_bytes),
                         file_, file_offset});
  } else {
    table_.skipped.emplace(name, std::string(dtype->name));
  }
  extents_.push_back(*std::move(extent));
  return absl::OkStatus();
}

absl::Status HeaderReader::CheckCoverage() {
  std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Extent& extent : extents_) {
    if (extent.begin != covered) {
      return MalformedFile(
          file_, absl::StrCat("tensor ", Quoted(extent.name)), data_offset_ + extent.begin,
          absl::StrCat("its data to follow the previous tensor's, at data offset ", covered),
          absl::StrCat("data offset ", extent.begin));
    }
    covered = extent.end;
  }
  if (covered != data_bytes()) {
    return MalformedFile(file_, "end of the tensors", data_offset_ + covered,
                         absl::StrCat("the end of the file, byte ", bytes_.size()),
                         absl::StrCat(data_bytes() - covered, " bytes that belong to no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TensorTable> ParseSafetensors(std::span<const std::byte> bytes,
                                             const std::string& file) {
  if (bytes.size() < kLengthBytes) {
    return MalformedFile(file, "header length", 0, "8 bytes",
                         absl::StrCat(bytes.size(), " bytes in the file"));
  }
  uint64_t header_bytes = 0;
  for (uint64_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  const uint64_t limit =
      std::min<uint64_t>(kMaxSafetensorsHeaderBytes, bytes.size() - kLengthBytes);
  if (header_bytes > limit) {
    return MalformedFile(
        file, "header length", 0,
        absl::StrCat("at most ", limit, " (the file has ", bytes.size(), " bytes)"),
        absl::StrCat(header_bytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              header_bytes);
  absl::StatusOr<json> header = ParseJson(text, file, kLengthBytes);
  if (!header.ok()) return header.status();
  if (!header->is_object()) {
    return MalformedFile(file, "header", kLengthBytes, "a JSON object", header->type_name());
  }
  if (header->size() > kMaxTensorsPerFile) {
    return MalformedFile(file, "header", kLengthBytes,
                         absl::StrCat("at most ", kMaxTensorsPerFile, " tensors"),
                         absl::StrCat(header->size()));
  }
  HeaderReader reader(bytes, file, header_bytes);
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    if (absl::Status status = reader.AddTensor(name, entry); !status.ok()) return status;
  }
  if (absl::Status status = reader.CheckCoverage(); !status.ok()) return status;
  return reader.Take();
}

}  // namespace vivarium::engine
