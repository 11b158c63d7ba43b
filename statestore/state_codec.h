// A state as bytes: the manifest and the chunks that the slot is cut into, as both the store and
// the export file have them. The formats are specified in README.md.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

inline constexpr uint32_t kManifestVersion = 3;  // of what is written; all before are read
inline constexpr uint16_t kEnvelopeVersion = 1;
inline constexpr size_t kEnvelopeBytes = 32;
inline constexpr uint32_t kDefaultChunkBytes = 1 << 20;
inline constexpr uint32_t kMinChunkBytes = 64;
inline constexpr uint32_t kMaxChunkBytes = 16 << 20;
inline constexpr uint32_t kMaxChunks = 1 << 20;
inline constexpr size_t kMaxManifestBytes = 160 << 20;

// How a slot is cut into chunks, and what they must be.
struct ChunkTable {
  uint32_t chunk_bytes = kDefaultChunkBytes;  // of slot bytes in each chunk but the last
  std::vector<uint64_t> checksums;            // of each whole chunk, envelope included
  uint64_t stored_bytes = 0;                  // of all chunks, envelopes included
};

struct StoredManifest {
  StateManifest manifest;
  ChunkTable chunks;  // no checksums when the bytes were dropped
};

// ceil(slot_bytes / chunk_bytes).
uint64_t NumChunks(uint64_t slot_bytes, uint32_t chunk_bytes);
// The slot's bytes that chunk `chunk_index` holds.
std::span<const std::byte> ChunkPayload(const engine::StateBuffer& slot, uint32_t chunk_bytes,
                                        uint64_t chunk_index);
std::span<std::byte> ChunkPayload(engine::StateBuffer& slot, uint32_t chunk_bytes,
                                  uint64_t chunk_index);
// What the chunks of a slot take when raw, envelopes included.
uint64_t StoredBytes(uint64_t slot_bytes, uint32_t chunk_bytes);
// The most that they can take with `codec`; all but zstd's take exactly that.
uint64_t MaxStoredBytes(const engine::StateLayout& layout, StateCodec codec, uint32_t chunk_bytes);

// The envelope in front of a payload of `payload_bytes`, as packed: key id 0, nonce zero.
std::array<char, kEnvelopeBytes> ChunkEnvelope(uint64_t payload_bytes,
                                               StateCodec codec = StateCodec::kRaw);
// Of envelope and payload together.
uint64_t ChunkChecksum(std::string_view envelope, std::span<const std::byte> payload);
// One chunk as stored. `payload` views the slot where that is raw, else `packed`, which must stay.
struct EncodedChunk {
  std::array<char, kEnvelopeBytes> envelope;
  std::string packed;
  std::span<const std::byte> payload;
};
void EncodeChunk(const engine::StateLayout& layout, StateCodec codec,
                 const engine::StateBuffer& slot, uint32_t chunk_bytes, uint64_t chunk_index,
                 EncodedChunk* chunk);
// The table of a slot's chunks when raw: reads every byte.
ChunkTable MakeChunkTable(const engine::StateBuffer& slot, uint32_t chunk_bytes);

// Checks a stored chunk against its checksum and its envelope, and unpacks it into its part of
// `slot`. DATA_LOSS when checksum, codec or size differ from what the manifest says, UNIMPLEMENTED
// for a newer envelope or an encrypted chunk. The slot is untouched unless the checksum holds.
absl::Status DecodeChunk(std::string_view chunk, const StoredManifest& stored, uint64_t chunk_index,
                         engine::StateBuffer* slot);

// How much of a manifest is decoded: a long transcript is most of it, and most readers don't care.
enum class ManifestPart { kAll, kWithoutTranscript };

// Times are kept in whole nanoseconds.
std::string EncodeManifest(const StoredManifest& stored);
// DATA_LOSS when the checksum fails; then UNIMPLEMENTED for a newer version; then INVALID_ARGUMENT,
// naming the offset or the field, for bytes that no encoder of ours makes.
absl::StatusOr<StoredManifest> DecodeManifest(std::string_view bytes,
                                              ManifestPart part = ManifestPart::kAll);

}  // namespace vivarium::statestore
