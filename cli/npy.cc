#include "cli/npy.h"

#include <bit>
#include <cassert>

#include "absl/strings/str_cat.h"

namespace vivarium::cli {
namespace {

static_assert(std::endian::native == std::endian::little);

// Magic, version 1.0, header length, then a Python dictionary padded with spaces to a multiple of
// 64 bytes, so that the data is aligned.
std::string Header(const std::vector<int64_t>& shape) {
  constexpr size_t kAlignment = 64;
  constexpr size_t kPreambleBytes = 10;
  std::string dimensions;
  for (int64_t dimension : shape) absl::StrAppend(&dimensions, dimension, ", ");
  // "(2, 3)" but "(3,)": a tuple of one keeps its comma.
  if (!shape.empty()) dimensions.resize(dimensions.size() - (shape.size() > 1 ? 2 : 1));
  std::string text =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", dimensions, "), }");
  const size_t unpadded = kPreambleBytes + text.size() + 1;
  text += std::string((kAlignment - unpadded % kAlignment) % kAlignment, ' ') + "\n";
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(text.size() & 0xFF);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NpyWriter>> NpyWriter::Create(const std::string& path,
                                                             const std::vector<int64_t>& shape) {
  auto file = OutputFile::Create(path);
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->Write(Header(shape)); !status.ok()) return status;
  uint64_t num_values = 1;
  for (int64_t dimension : shape) num_values *= static_cast<uint64_t>(dimension);
  return std::unique_ptr<NpyWriter>(new NpyWriter(*std::move(file), num_values));
}

absl::Status NpyWriter::Append(std::span<const float> values) {
  assert(values.size() <= missing_values_);
  missing_values_ -= values.size();
  return file_->Write({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
}

absl::Status NpyWriter::Finish() {
  assert(missing_values_ == 0);
  return file_->Finish();
}

absl::Status WriteNpy(const std::string& path, const std::vector<int64_t>& shape,
                      std::span<const float> values) {
  auto writer = NpyWriter::Create(path, shape);
  if (!writer.ok()) return writer.status();
  if (absl::Status status = (*writer)->Append(values); !status.ok()) return status;
  return (*writer)->Finish();
}

}  // namespace vivarium::cli
