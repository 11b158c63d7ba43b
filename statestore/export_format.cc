#include "statestore/export_format.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "statestore/byte_codec.h"
#include "statestore/state_codec.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kHeaderChecksumBytes = 8;
constexpr size_t kReservedBytes = 8;

absl::Status ValidateHeader(const ExportHeader& header) {
  const auto invalid = [](const char* field, uint64_t found, uint64_t expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("export header: ", field, " ", found, ", expected ", expected));
  };
  if (header.slot_bytes > kMaxSlotBytes) {
    return invalid("slot_bytes at most", header.slot_bytes, kMaxSlotBytes);
  }
  if (header.manifest_bytes > kMaxManifestBytes) {
    return invalid("manifest_bytes at most", header.manifest_bytes, kMaxManifestBytes);
  }
  if (header.chunk_bytes < kMinChunkBytes || header.chunk_bytes > kMaxChunkBytes) {
    return invalid("chunk_bytes", header.chunk_bytes, kDefaultChunkBytes);
  }
  const uint64_t num_chunks = NumChunks(header.slot_bytes, header.chunk_bytes);
  if (header.num_chunks != num_chunks || num_chunks > kMaxChunks) {
    return invalid("num_chunks", header.num_chunks, num_chunks);
  }
  // All bounded above: no overflow.
  const uint64_t file_bytes = kExportHeaderBytes + header.manifest_bytes +
                              StoredBytes(header.slot_bytes, header.chunk_bytes) +
                              kExportTrailerBytes;
  if (header.file_bytes != file_bytes) {
    return invalid("file_bytes", header.file_bytes, file_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeExportHeader(const ExportHeader& header) {
  std::string bytes(kExportMagic);
  ByteWriter writer(&bytes);
  writer.Number<uint32_t>(kExportVersion);
  writer.Number<uint32_t>(kExportHeaderBytes);
  writer.Number<uint64_t>(header.file_bytes);
  writer.Number<uint64_t>(header.manifest_bytes);
  writer.Number<uint64_t>(header.slot_bytes);
  writer.Number<uint32_t>(header.chunk_bytes);
  writer.Number<uint32_t>(header.num_chunks);
  writer.Number<uint64_t>(0);  // reserved
  writer.Number<uint64_t>(Checksum(bytes));
  return bytes;
}

absl::StatusOr<uint32_t> ExportHeaderBytes(std::string_view prologue) {
  ByteReader reader(prologue);
  if (reader.Bytes(kExportMagic.size()) != kExportMagic) {
    return absl::InvalidArgumentError(absl::StrCat(
        "not an exported state: it does not start with \"", std::string(kExportMagic), "\""));
  }
  reader.Number<uint32_t>();  // the version is believed once the header's checksum holds
  const auto header_bytes = reader.Number<uint32_t>();
  if (!reader.ok() || header_bytes < kExportPrologueBytes + kHeaderChecksumBytes ||
      header_bytes > kMaxExportHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("export header of ", header_bytes, " bytes, expected ", kExportHeaderBytes));
  }
  return header_bytes;
}

absl::StatusOr<ExportHeader> DecodeExportHeader(std::string_view bytes) {
  const std::string_view covered = bytes.substr(0, bytes.size() - kHeaderChecksumBytes);
  const auto expected = ByteReader(bytes.substr(covered.size())).Number<uint64_t>();
  if (const uint64_t found = Checksum(covered); found != expected) {
    return absl::DataLossError(
        absl::StrFormat("export header: checksum %016x, expected %016x", found, expected));
  }
  ByteReader reader(covered);
  reader.Bytes(kExportMagic.size());
  const auto version = reader.Number<uint32_t>();
  if (version > kExportVersion) {
    return absl::UnimplementedError(absl::StrCat("export file: format version ", version,
                                                 ", this program knows up to ", kExportVersion));
  }
  if (version == 0 || bytes.size() != kExportHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("export header: version ", version, " with ",
                                                   bytes.size(), " bytes, expected version 1 with ",
                                                   kExportHeaderBytes));
  }
  reader.Number<uint32_t>();  // header_bytes
  ExportHeader header;
  header.file_bytes = reader.Number<uint64_t>();
  header.manifest_bytes = reader.Number<uint64_t>();
  header.slot_bytes = reader.Number<uint64_t>();
  header.chunk_bytes = reader.Number<uint32_t>();
  header.num_chunks = reader.Number<uint32_t>();
  if (reader.Bytes(kReservedBytes).find_first_not_of('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError("export header: reserved bytes are not zero");
  }
  if (absl::Status status = ValidateHeader(header); !status.ok()) return status;
  return header;
}

}  // namespace vivarium::statestore
