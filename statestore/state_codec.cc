#include "statestore/state_codec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "statestore/byte_codec.h"
#include "statestore/slot_packing.h"

namespace vivarium::statestore {
namespace {

using engine::StateLayout;

constexpr size_t kNonceBytes = 12;

std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

uint64_t NumChunks(uint64_t slot_bytes, uint32_t chunk_bytes) {
  return slot_bytes / chunk_bytes + (slot_bytes % chunk_bytes == 0 ? 0 : 1);
}

std::span<const std::byte> ChunkPayload(const engine::StateBuffer& slot, uint32_t chunk_bytes,
                                        uint64_t chunk_index) {
  const uint64_t begin = chunk_index * chunk_bytes;
  return slot.span().subspan(begin, std::min<uint64_t>(chunk_bytes, slot.size() - begin));
}

std::span<std::byte> ChunkPayload(engine::StateBuffer& slot, uint32_t chunk_bytes,
                                  uint64_t chunk_index) {
  const uint64_t begin = chunk_index * chunk_bytes;
  return slot.span().subspan(begin, std::min<uint64_t>(chunk_bytes, slot.size() - begin));
}

uint64_t StoredBytes(uint64_t slot_bytes, uint32_t chunk_bytes) {
  return slot_bytes + NumChunks(slot_bytes, chunk_bytes) * kEnvelopeBytes;
}

uint64_t MaxStoredBytes(const engine::StateLayout& layout, StateCodec codec, uint32_t chunk_bytes) {
  uint64_t num_bytes = NumChunks(layout.slot_bytes, chunk_bytes) * kEnvelopeBytes;
  for (uint64_t begin = 0; begin < layout.slot_bytes; begin += chunk_bytes) {
    const uint64_t end = std::min<uint64_t>(begin + chunk_bytes, layout.slot_bytes);
    num_bytes += PackedBytes(layout, codec, begin, end).max_bytes;
  }
  return num_bytes;
}

std::array<char, kEnvelopeBytes> ChunkEnvelope(uint64_t payload_bytes, StateCodec codec) {
  std::string bytes;
  ByteWriter writer(&bytes);
  writer.Number<uint16_t>(kEnvelopeVersion);
  writer.Number<uint8_t>(static_cast<uint8_t>(codec));
  writer.Number<uint8_t>(0);
  writer.Number<uint32_t>(0);  // key id: not encrypted
  bytes.append(kNonceBytes, '\0');
  writer.Number<uint32_t>(0);
  writer.Number<uint64_t>(payload_bytes);
  std::array<char, kEnvelopeBytes> envelope;
  std::copy(bytes.begin(), bytes.end(), envelope.begin());
  return envelope;
}

uint64_t ChunkChecksum(std::string_view envelope, std::span<const std::byte> payload) {
  RunningChecksum checksum;
  checksum.Update(envelope);
  checksum.Update(AsText(payload));
  return checksum.Digest();
}

void EncodeChunk(const StateLayout& layout, StateCodec codec, const engine::StateBuffer& slot,
                 uint32_t chunk_bytes, uint64_t chunk_index, EncodedChunk* chunk) {
  chunk->payload = ChunkPayload(slot, chunk_bytes, chunk_index);
  if (codec != StateCodec::kRaw) {
    chunk->packed = Pack(layout, codec, chunk_index * chunk_bytes, chunk->payload);
    chunk->payload = std::as_bytes(std::span(chunk->packed));
  }
  chunk->envelope = ChunkEnvelope(chunk->payload.size(), codec);
}

ChunkTable MakeChunkTable(const engine::StateBuffer& slot, uint32_t chunk_bytes) {
  ChunkTable table;
  table.chunk_bytes = chunk_bytes;
  table.stored_bytes = StoredBytes(slot.size(), chunk_bytes);
  const uint64_t num_chunks = NumChunks(slot.size(), chunk_bytes);
  table.checksums.reserve(num_chunks);
  for (uint64_t i = 0; i < num_chunks; ++i) {
    const std::span<const std::byte> payload = ChunkPayload(slot, chunk_bytes, i);
    const auto envelope = ChunkEnvelope(payload.size());
    table.checksums.push_back(ChunkChecksum({envelope.data(), envelope.size()}, payload));
  }
  return table;
}

absl::Status DecodeChunk(std::string_view chunk, const StoredManifest& stored, uint64_t chunk_index,
                         engine::StateBuffer* slot) {
  const uint64_t expected_checksum = stored.chunks.checksums[chunk_index];
  if (const uint64_t found = Checksum(chunk); found != expected_checksum) {
    return absl::DataLossError(absl::StrFormat("chunk of %d bytes: checksum %016x, expected %016x",
                                               chunk.size(), found, expected_checksum));
  }
  ByteReader reader(chunk);
  const auto version = reader.Number<uint16_t>();
  const auto codec = reader.Number<uint8_t>();
  const auto reserved = reader.Number<uint8_t>();
  const auto key_id = reader.Number<uint32_t>();
  const std::string_view nonce = reader.Bytes(kNonceBytes);
  const auto more_reserved = reader.Number<uint32_t>();
  const auto payload_bytes = reader.Number<uint64_t>();
  if (!reader.ok() || version == 0) {
    return absl::DataLossError(absl::StrCat("chunk of ", chunk.size(), " bytes, version ", version,
                                            ": no envelope of ", kEnvelopeBytes));
  }
  if (version > kEnvelopeVersion || codec >= kNumStateCodecs || key_id != 0) {
    return absl::UnimplementedError(
        absl::StrCat("chunk envelope version ", version, ", codec ", static_cast<int>(codec),
                     ", key id ", key_id, "; this program knows version ", kEnvelopeVersion,
                     ", codecs 0 to ", kNumStateCodecs - 1, ", key id 0"));
  }
  if (reserved != 0 || more_reserved != 0 || nonce.find_first_not_of('\0') != nonce.npos) {
    return absl::InvalidArgumentError("chunk envelope: reserved bytes or nonce are not zero");
  }
  const StateManifest& manifest = stored.manifest;
  if (static_cast<StateCodec>(codec) != manifest.codec || payload_bytes != reader.remaining()) {
    return absl::DataLossError(absl::StrCat(
        "chunk says codec ", static_cast<int>(codec), " and ", payload_bytes, " and holds ",
        reader.remaining(), " payload bytes, expected codec ", static_cast<int>(manifest.codec)));
  }
  return Unpack(manifest.layout, manifest.codec, chunk_index * stored.chunks.chunk_bytes,
                chunk.substr(kEnvelopeBytes),
                ChunkPayload(*slot, stored.chunks.chunk_bytes, chunk_index));
}

}  // namespace vivarium::statestore
