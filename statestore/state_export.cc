#include "statestore/state_export.h"

#include <algorithm>
#include <utility>

namespace vivarium::statestore {

StateExporter::StateExporter(SavedState state)
    : state_(std::move(state)), chunks_(MakeChunkTable(state_.slot, kDefaultChunkBytes)) {
  const uint64_t slot_bytes = state_.slot.size();
  state_.manifest.stored_bytes = StoredBytes(slot_bytes, kDefaultChunkBytes);
  state_.manifest.codec = StateCodec::kRaw;  // of the file; what was lost before stays said
  const std::string manifest = EncodeManifest({state_.manifest, chunks_});
  header_.manifest_bytes = manifest.size();
  header_.slot_bytes = slot_bytes;
  header_.chunk_bytes = kDefaultChunkBytes;
  header_.num_chunks = static_cast<uint32_t>(chunks_.checksums.size());
  header_.file_bytes =
      kExportHeaderBytes + manifest.size() + state_.manifest.stored_bytes + kExportTrailerBytes;
  front_ = EncodeExportHeader(header_) + manifest;
}

std::string StateExporter::NextPiece() {
  std::string piece;
  piece.reserve(std::min<uint64_t>(kMaxExportPieceBytes, header_.file_bytes - offset_));
  while (offset_ < header_.file_bytes && piece.size() < kMaxExportPieceBytes) AppendNext(&piece);
  return piece;
}

void StateExporter::AppendNext(std::string* piece) {
  if (offset_ < front_.size()) return Append(front_, offset_, piece);
  if (offset_ >= header_.file_bytes - kExportTrailerBytes) {
    std::string trailer;
    ByteWriter(&trailer).Number<uint64_t>(checksum_.Digest());
    // Not covered by itself; its 8 bytes may straddle two pieces.
    const uint64_t begin = offset_ - (header_.file_bytes - kExportTrailerBytes);
    const uint64_t num_bytes =
        std::min<uint64_t>(kMaxExportPieceBytes - piece->size(), trailer.size() - begin);
    piece->append(trailer, begin, num_bytes);
    offset_ += num_bytes;
    return;
  }
  const uint64_t stride = kEnvelopeBytes + header_.chunk_bytes;
  const uint64_t chunk_index = (offset_ - front_.size()) / stride;
  const uint64_t in_chunk = (offset_ - front_.size()) % stride;
  const std::span<const std::byte> payload =
      ChunkPayload(std::as_const(state_.slot), header_.chunk_bytes, chunk_index);
  if (in_chunk < kEnvelopeBytes) {
    const auto envelope = ChunkEnvelope(payload.size());
    return Append({envelope.data(), envelope.size()}, in_chunk, piece);
  }
  Append({reinterpret_cast<const char*>(payload.data()), payload.size()}, in_chunk - kEnvelopeBytes,
         piece);
}

void StateExporter::Append(std::string_view source, uint64_t source_offset, std::string* piece) {
  const std::string_view bytes = source.substr(source_offset, kMaxExportPieceBytes - piece->size());
  piece->append(bytes);
  checksum_.Update(bytes);
  offset_ += bytes.size();
}

}  // namespace vivarium::statestore
