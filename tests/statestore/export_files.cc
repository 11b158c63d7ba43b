#include "tests/statestore/export_files.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

namespace vivarium::statestore {
namespace {

void PutChecksum(std::string& file, size_t offset, std::string_view covered) {
  const uint64_t checksum = Checksum(covered);
  std::memcpy(file.data() + offset, &checksum, sizeof(checksum));
}

}  // namespace

SavedState CopyOf(const SavedState& state) {
  SavedState copy{state.manifest, engine::StateBuffer(state.slot.size())};
  std::memcpy(copy.slot.data(), state.slot.data(), state.slot.size());
  return copy;
}

std::string ExportFile(const SavedState& state) {
  StateExporter exporter(CopyOf(state));
  std::string file;
  for (std::string piece = exporter.NextPiece(); !piece.empty(); piece = exporter.NextPiece()) {
    file += piece;
  }
  return file;
}

absl::StatusOr<SavedState> ImportFile(const std::string& file, const ImportOptions& options) {
  StateImporter importer(options);
  if (absl::Status status = importer.Push(file); !status.ok()) return status;
  return importer.Finish();
}

std::string Resigned(std::string file) {
  const auto number = [&file](size_t offset, auto value) {
    std::memcpy(&value, file.data() + offset, sizeof(value));
    return value;
  };
  const auto sizes_fit = [&](uint64_t manifest_bytes, uint64_t num_chunks) {
    return manifest_bytes >= 16 + 8 * num_chunks && manifest_bytes < file.size() - 72;
  };
  const auto manifest_bytes = number(24, uint64_t{});
  const uint64_t slot_bytes = number(32, uint64_t{});
  const uint64_t chunk_bytes = std::max<uint32_t>(number(40, uint32_t{}), 1);
  const uint64_t num_chunks = number(44, uint32_t{});
  if (sizes_fit(manifest_bytes, num_chunks)) {
    const size_t manifest_end = 64 + manifest_bytes;
    size_t chunk_begin = manifest_end;
    uint64_t left_bytes = slot_bytes;
    for (uint64_t i = 0; i < num_chunks; ++i) {
      const uint64_t payload_bytes = std::min(chunk_bytes, left_bytes);
      left_bytes -= payload_bytes;
      if (chunk_begin + 32 + payload_bytes > file.size()) break;
      const std::string chunk = file.substr(chunk_begin, 32 + payload_bytes);
      PutChecksum(file, manifest_end - 8 - 8 * (num_chunks - i), chunk);
      chunk_begin += chunk.size();
    }
    PutChecksum(file, manifest_end - 8, std::string(file, 64, manifest_bytes - 8));
  }
  PutChecksum(file, 56, std::string(file, 0, 56));
  PutChecksum(file, file.size() - 8, std::string(file, 0, file.size() - 8));
  return file;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace vivarium::statestore
