// The fixed parts of the export file, for its writer and its reader. Specified in README.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace vivarium::statestore {

inline constexpr std::string_view kExportMagic = "VIVSTATE";
inline constexpr uint32_t kExportVersion = 1;
inline constexpr size_t kExportPrologueBytes =
    16;                                           // magic, version, header_bytes: in every version
inline constexpr size_t kExportHeaderBytes = 64;  // of version 1
inline constexpr size_t kMaxExportHeaderBytes = 4096;  // of any version
inline constexpr size_t kExportTrailerBytes = 8;
inline constexpr size_t kMaxExportPieceBytes = 1 << 20;

struct ExportHeader {
  uint64_t file_bytes = 0;
  uint64_t manifest_bytes = 0;
  uint64_t slot_bytes = 0;
  uint32_t chunk_bytes = 0;
  uint32_t num_chunks = 0;
};

std::string EncodeExportHeader(const ExportHeader& header);
// How long the header is, from its first kExportPrologueBytes. INVALID_ARGUMENT when this is no
// export file.
absl::StatusOr<uint32_t> ExportHeaderBytes(std::string_view prologue);
// From a whole header. DATA_LOSS when its checksum fails; then UNIMPLEMENTED for a newer version;
// then INVALID_ARGUMENT when its numbers don't fit each other.
absl::StatusOr<ExportHeader> DecodeExportHeader(std::string_view bytes);

}  // namespace vivarium::statestore
