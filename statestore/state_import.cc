#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "statestore/slot_packing.h"
#include "statestore/state_export.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {
namespace {

std::string Describe(const engine::StateLayout& layout) {
  return absl::StrCat("version ", layout.version, ", ", layout.parts.size(), " parts, ",
                      layout.slot_bytes, " bytes");
}

}  // namespace

absl::Status StateImporter::Push(std::string_view piece) {
  while (status_.ok() && !piece.empty()) {
    if (part_ == Part::kDone) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat("export file: bytes after its end at ", header_.file_bytes));
      break;
    }
    const std::string_view bytes =
        piece.substr(0, std::min<uint64_t>(piece.size(), part_bytes_ - buffer_.size()));
    buffer_.append(bytes);
    if (part_ != Part::kTrailer) checksum_.Update(bytes);
    piece.remove_prefix(bytes.size());
    if (buffer_.size() == part_bytes_) status_ = TakePart();
  }
  return status_;
}

absl::StatusOr<SavedState> StateImporter::Finish() {
  if (status_.ok() && part_ != Part::kDone) {
    status_ = absl::DataLossError(
        part_ == Part::kPrologue || part_ == Part::kHeader
            ? std::string("export file: cut off in its header")
            : absl::StrCat("export file: cut off, expected ", header_.file_bytes, " bytes"));
  }
  if (!status_.ok()) return status_;
  status_ = absl::FailedPreconditionError("the imported state was already taken");
  return SavedState{std::move(stored_.manifest), std::move(slot_)};
}

absl::Status StateImporter::TakePart() {
  switch (part_) {
    case Part::kPrologue: {
      absl::StatusOr<uint32_t> header_bytes = ExportHeaderBytes(buffer_);
      if (!header_bytes.ok()) return header_bytes.status();
      part_ = Part::kHeader;  // goes on in the same buffer
      part_bytes_ = *header_bytes;
      return absl::OkStatus();
    }
    case Part::kHeader:
      return TakeHeader();
    case Part::kManifest:
      return TakeManifest();
    case Part::kChunk:
      return TakeChunk();
    case Part::kTrailer:
      return TakeTrailer();
    case Part::kDone:
      break;
  }
  return absl::InternalError("import: no part is open");
}

absl::Status StateImporter::TakeHeader() {
  absl::StatusOr<ExportHeader> header = DecodeExportHeader(buffer_);
  if (!header.ok()) return header.status();
  header_ = *header;
  if (header_.slot_bytes > options_.max_slot_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("export header: slot of ", header_.slot_bytes,
                                                   " bytes, expected at most ",
                                                   options_.max_slot_bytes));
  }
  StartPart(Part::kManifest, header_.manifest_bytes);
  // An empty manifest would never be filled by a byte.
  return header_.manifest_bytes > 0
             ? absl::OkStatus()
             : absl::InvalidArgumentError("export header: manifest of 0 bytes");
}

absl::Status StateImporter::TakeManifest() {
  absl::StatusOr<StoredManifest> stored = DecodeManifest(buffer_);
  if (!stored.ok()) return stored.status();
  stored_ = *std::move(stored);
  if (absl::Status status = CheckManifest(); !status.ok()) return status;
  slot_ = engine::StateBuffer(header_.slot_bytes);
  StartChunkOrTrailer();
  return absl::OkStatus();
}

absl::Status StateImporter::CheckManifest() {
  const StateManifest& manifest = stored_.manifest;
  if (manifest.bytes_dropped) {
    return absl::InvalidArgumentError(absl::StrCat("exported state ", manifest.id,
                                                   ": its bytes were dropped, expected a whole "
                                                   "state"));
  }
  if (manifest.codec != StateCodec::kRaw) {
    return absl::InvalidArgumentError(absl::StrCat("exported state ", manifest.id, ": codec ",
                                                   std::string(StateCodecName(manifest.codec)),
                                                   ", expected raw in a file"));
  }
  if (manifest.layout.slot_bytes != header_.slot_bytes ||
      stored_.chunks.chunk_bytes != header_.chunk_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("exported state ", manifest.id, ": its manifest says ",
                     manifest.layout.slot_bytes, " bytes in chunks of ", stored_.chunks.chunk_bytes,
                     ", its header ", header_.slot_bytes, " in chunks of ", header_.chunk_bytes));
  }
  if (options_.expected_layout != nullptr && manifest.layout != *options_.expected_layout &&
      !engine::AreConvertible(manifest.layout, *options_.expected_layout)) {
    return absl::FailedPreconditionError(
        absl::StrCat("exported state ", manifest.id, ": layout ", Describe(manifest.layout),
                     ", expected the model's, ", Describe(*options_.expected_layout)));
  }
  return absl::OkStatus();
}

absl::Status StateImporter::TakeChunk() {
  const absl::Status status = DecodeChunk(buffer_, stored_, chunk_index_, &slot_);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("exported state ", stored_.manifest.id,
                                                    ", chunk ", chunk_index_, " of ",
                                                    header_.num_chunks, ": ", status.message()));
  }
  ++chunk_index_;
  StartChunkOrTrailer();
  return absl::OkStatus();
}

absl::Status StateImporter::TakeTrailer() {
  const auto expected = ByteReader(buffer_).Number<uint64_t>();
  if (const uint64_t found = checksum_.Digest(); found != expected) {
    return absl::DataLossError(
        absl::StrFormat("export file: checksum %016x, expected %016x", found, expected));
  }
  if (absl::Status status = ValidateSlot(stored_.manifest.layout, slot_); !status.ok()) {
    return status;
  }
  StartPart(Part::kDone, 0);
  return absl::OkStatus();
}

void StateImporter::StartPart(Part part, uint64_t part_bytes) {
  part_ = part;
  part_bytes_ = part_bytes;
  buffer_.clear();
}

void StateImporter::StartChunkOrTrailer() {
  if (chunk_index_ == header_.num_chunks) return StartPart(Part::kTrailer, kExportTrailerBytes);
  const uint64_t payload_bytes = ChunkPayload(slot_, header_.chunk_bytes, chunk_index_).size();
  StartPart(Part::kChunk, kEnvelopeBytes + payload_bytes);
}

}  // namespace vivarium::statestore
