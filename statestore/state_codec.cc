#include "statestore/state_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "statestore/byte_codec.h"
#include "statestore/record_frame.h"
#include "statestore/slot_packing.h"
#include "statestore/state_id.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {
namespace {

using engine::StateLayout;
using engine::StatePart;
using engine::TranscriptToken;

constexpr FrameKind kManifestFrame = {"manifest", "VMAN", kManifestVersion};
constexpr uint8_t kNumCodecs = 3;
constexpr size_t kNonceBytes = 12;
constexpr size_t kMinPartBytes = 4 + 1 + 1 + 8 + 8;  // empty name, no dimensions
constexpr size_t kMinLabelBytes = 4 + 4;
constexpr size_t kTokenBytes = 4;
constexpr size_t kLogitBiasBytes = 4 + 4;
constexpr size_t kChecksumBytes = 8;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();  // InfiniteFuture

std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void WriteTime(absl::Time time, ByteWriter& writer) {
  writer.Number<int64_t>(time == absl::InfiniteFuture() ? kNever : absl::ToUnixNanos(time));
}

absl::Time ReadTime(ByteReader& reader) {
  const auto nanos = reader.Number<int64_t>();
  return nanos == kNever ? absl::InfiniteFuture() : absl::FromUnixNanos(nanos);
}

void WriteTokens(const std::vector<TranscriptToken>& tokens, ByteWriter& writer) {
  writer.Number<uint32_t>(static_cast<uint32_t>(tokens.size()));
  for (const TranscriptToken& token : tokens) {
    writer.Number<uint32_t>(static_cast<uint32_t>(token.id) << 1 | (token.is_output ? 1 : 0));
  }
}

std::vector<TranscriptToken> ReadTokens(size_t max_tokens, ByteReader& reader) {
  const uint32_t num_tokens = reader.Count(max_tokens, kTokenBytes);
  std::vector<TranscriptToken> tokens;
  tokens.reserve(num_tokens);
  for (uint32_t i = 0; i < num_tokens; ++i) {
    const auto bits = reader.Number<uint32_t>();
    tokens.push_back({static_cast<int32_t>(bits >> 1), (bits & 1) != 0});
  }
  return tokens;
}

// 0 or 1, nothing else: one value has one encoding.
bool ReadBool(ByteReader& reader) {
  const auto value = reader.Number<uint8_t>();
  if (value > 1) reader.Fail();
  return value == 1;
}

void WriteLayout(const StateLayout& layout, ByteWriter& writer) {
  writer.Number<uint32_t>(layout.version);
  writer.Number<uint64_t>(layout.slot_bytes);
  writer.Number<uint32_t>(static_cast<uint32_t>(layout.parts.size()));
  for (const StatePart& part : layout.parts) {
    writer.String(part.name);
    writer.Number<uint8_t>(static_cast<uint8_t>(part.dtype));
    writer.Number<uint8_t>(static_cast<uint8_t>(part.shape.size()));
    for (int64_t dim : part.shape) writer.Number<int64_t>(dim);
    writer.Number<uint64_t>(part.offset_bytes);
    writer.Number<uint64_t>(part.size_bytes);
  }
}

StateLayout ReadLayout(ByteReader& reader) {
  StateLayout layout;
  layout.version = reader.Number<uint32_t>();
  layout.slot_bytes = reader.Number<uint64_t>();
  const uint32_t num_parts = reader.Count(kMaxParts, kMinPartBytes);
  layout.parts.reserve(num_parts);
  for (uint32_t i = 0; i < num_parts && reader.ok(); ++i) {
    StatePart part;
    part.name = reader.String(kMaxPartNameBytes);
    const auto dtype = reader.Number<uint8_t>();
    if (dtype > static_cast<uint8_t>(kernels::DType::kF16)) reader.Fail();
    part.dtype = static_cast<kernels::DType>(reader.ok() ? dtype : 0);
    const auto num_dims = reader.Number<uint8_t>();
    if (num_dims > kMaxPartDims) reader.Fail();
    for (uint8_t dim = 0; dim < num_dims && reader.ok(); ++dim) {
      part.shape.push_back(reader.Number<int64_t>());
    }
    part.offset_bytes = reader.Number<uint64_t>();
    part.size_bytes = reader.Number<uint64_t>();
    layout.parts.push_back(std::move(part));
  }
  return layout;
}

void WriteSampling(const engine::SamplingParams& sampling, ByteWriter& writer) {
  writer.Number<float>(sampling.temperature);
  writer.Number<int32_t>(sampling.top_k);
  writer.Number<float>(sampling.top_p);
  writer.Number<float>(sampling.min_p);
  writer.Number<float>(sampling.repetition_penalty);
  writer.Number<float>(sampling.presence_penalty);
  writer.Number<float>(sampling.frequency_penalty);
  writer.Number<uint64_t>(sampling.seed);
  writer.Number<uint32_t>(static_cast<uint32_t>(sampling.logit_bias.size()));
  for (const auto& [id, bias] : sampling.logit_bias) {
    writer.Number<int32_t>(id);
    writer.Number<float>(bias);
  }
}

engine::SamplingParams ReadSampling(ByteReader& reader) {
  engine::SamplingParams sampling;
  sampling.temperature = reader.Number<float>();
  sampling.top_k = reader.Number<int32_t>();
  sampling.top_p = reader.Number<float>();
  sampling.min_p = reader.Number<float>();
  sampling.repetition_penalty = reader.Number<float>();
  sampling.presence_penalty = reader.Number<float>();
  sampling.frequency_penalty = reader.Number<float>();
  sampling.seed = reader.Number<uint64_t>();
  const uint32_t num_biases = reader.Count(engine::kMaxLogitBias, kLogitBiasBytes);
  for (uint32_t i = 0; i < num_biases; ++i) {
    const auto id = reader.Number<int32_t>();
    sampling.logit_bias.emplace_back(id, reader.Number<float>());
  }
  return sampling;
}

// Ascending keys only, as the encoder writes them.
Labels ReadLabels(ByteReader& reader) {
  Labels labels;
  const uint32_t num_labels = reader.Count(kMaxLabels, kMinLabelBytes);
  for (uint32_t i = 0; i < num_labels && reader.ok(); ++i) {
    std::string key = reader.String(kMaxLabelBytes);
    std::string value = reader.String(kMaxLabelBytes);
    if (!labels.empty() && key <= labels.rbegin()->first) reader.Fail();
    labels.emplace_hint(labels.end(), std::move(key), std::move(value));
  }
  return labels;
}

StateManifest ReadManifestFields(ByteReader& reader) {
  StateManifest manifest;
  manifest.id = reader.String(kStateIdChars);
  manifest.tenant = reader.String(kMaxTenantBytes);
  manifest.parent_id = reader.String(kStateIdChars);
  manifest.identity.fingerprint = reader.String(kMaxIdentityBytes);
  manifest.identity.tokenizer_hash = reader.String(kMaxIdentityBytes);
  manifest.identity.numerics_id = reader.String(kMaxIdentityBytes);
  manifest.layout = ReadLayout(reader);
  manifest.position = reader.Number<uint64_t>();
  manifest.pending_token = reader.Number<int32_t>();
  manifest.sampling = ReadSampling(reader);
  manifest.recent_tokens = ReadTokens(engine::kRecentTokenWindow, reader);
  manifest.text_tail = reader.String(kMaxTextTailBytes);
  manifest.transcript = ReadTokens(kMaxTranscriptTokens, reader);
  manifest.session = reader.String(kMaxSessionNameBytes);
  manifest.labels = ReadLabels(reader);
  manifest.pinned = ReadBool(reader);
  manifest.created = ReadTime(reader);
  manifest.expires = ReadTime(reader);
  manifest.stored_bytes = reader.Number<uint64_t>();
  manifest.bytes_dropped = ReadBool(reader);
  return manifest;
}

// The table fits the slot, or is empty where the bytes were dropped.
absl::Status ValidateChunkTable(const StateManifest& manifest, const ChunkTable& chunks) {
  if (chunks.chunk_bytes < kMinChunkBytes || chunks.chunk_bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("manifest ", manifest.id, ": chunks of ",
                                                   chunks.chunk_bytes, " bytes, expected ",
                                                   kMinChunkBytes, " to ", kMaxChunkBytes));
  }
  const uint64_t slot_bytes = manifest.bytes_dropped ? 0 : manifest.layout.slot_bytes;
  const uint64_t num_chunks = NumChunks(slot_bytes, chunks.chunk_bytes);
  if (chunks.checksums.size() != num_chunks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "manifest ", manifest.id, ": ", chunks.checksums.size(), " chunks, expected ", num_chunks));
  }
  PackedSize expected;
  for (uint64_t begin = 0; begin < slot_bytes; begin += chunks.chunk_bytes) {
    const uint64_t end = std::min<uint64_t>(begin + chunks.chunk_bytes, slot_bytes);
    const PackedSize chunk = PackedBytes(manifest.layout, manifest.codec, begin, end);
    expected.min_bytes += kEnvelopeBytes + chunk.min_bytes;
    expected.max_bytes += kEnvelopeBytes + chunk.max_bytes;
  }
  if (manifest.stored_bytes < expected.min_bytes || manifest.stored_bytes > expected.max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest ", manifest.id, ": ", manifest.stored_bytes,
                     " stored bytes, expected ", expected.min_bytes, " to ", expected.max_bytes));
  }
  return absl::OkStatus();
}

// What version 2 adds.
void ReadStorage(ByteReader& reader, StateManifest* manifest) {
  const auto codec = reader.Number<uint8_t>();
  if (codec >= kNumCodecs) reader.Fail();
  manifest->codec = static_cast<StateCodec>(codec);
  manifest->loss.max_absolute_error = reader.Number<double>();
  manifest->loss.max_relative_error = reader.Number<double>();
  for (double error : {manifest->loss.max_absolute_error, manifest->loss.max_relative_error}) {
    if (!std::isfinite(error) || std::signbit(error)) reader.Fail();
  }
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
  if (version > kEnvelopeVersion || codec >= kNumCodecs || key_id != 0) {
    return absl::UnimplementedError(absl::StrCat("chunk envelope version ", version, ", codec ",
                                                 static_cast<int>(codec), ", key id ", key_id,
                                                 "; this program knows version ", kEnvelopeVersion,
                                                 ", codecs 0 to ", kNumCodecs - 1, ", key id 0"));
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

std::string EncodeManifest(const StoredManifest& stored) {
  const StateManifest& manifest = stored.manifest;
  std::string body;
  ByteWriter writer(&body);
  writer.String(manifest.id);
  writer.String(manifest.tenant);
  writer.String(manifest.parent_id);
  writer.String(manifest.identity.fingerprint);
  writer.String(manifest.identity.tokenizer_hash);
  writer.String(manifest.identity.numerics_id);
  WriteLayout(manifest.layout, writer);
  writer.Number<uint64_t>(manifest.position);
  writer.Number<int32_t>(manifest.pending_token);
  WriteSampling(manifest.sampling, writer);
  WriteTokens(manifest.recent_tokens, writer);
  writer.String(manifest.text_tail);
  WriteTokens(manifest.transcript, writer);
  writer.String(manifest.session);
  writer.Number<uint32_t>(static_cast<uint32_t>(manifest.labels.size()));
  for (const auto& [key, value] : manifest.labels) {
    writer.String(key);
    writer.String(value);
  }
  writer.Number<uint8_t>(manifest.pinned ? 1 : 0);
  WriteTime(manifest.created, writer);
  WriteTime(manifest.expires, writer);
  writer.Number<uint64_t>(manifest.stored_bytes);
  writer.Number<uint8_t>(manifest.bytes_dropped ? 1 : 0);
  writer.Number<uint8_t>(static_cast<uint8_t>(manifest.codec));
  writer.Number<double>(manifest.loss.max_absolute_error);
  writer.Number<double>(manifest.loss.max_relative_error);
  writer.Number<uint32_t>(stored.chunks.chunk_bytes);
  writer.Number<uint32_t>(static_cast<uint32_t>(stored.chunks.checksums.size()));
  for (uint64_t checksum : stored.chunks.checksums) writer.Number<uint64_t>(checksum);
  return Frame(kManifestFrame, body);
}

absl::StatusOr<StoredManifest> DecodeManifest(std::string_view bytes) {
  absl::StatusOr<std::string_view> body = Unframe(kManifestFrame, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  StoredManifest stored;
  stored.manifest = ReadManifestFields(reader);
  if (FrameVersion(bytes) >= 2) ReadStorage(reader, &stored.manifest);
  stored.chunks.chunk_bytes = reader.Number<uint32_t>();
  const uint32_t num_chunks = reader.Count(kMaxChunks, kChecksumBytes);
  stored.chunks.checksums.reserve(num_chunks);
  for (uint32_t i = 0; i < num_chunks; ++i) {
    stored.chunks.checksums.push_back(reader.Number<uint64_t>());
  }
  if (!reader.ok() || reader.remaining() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: malformed before byte ", kFrameHeaderBytes + reader.offset(),
                     " of ", bytes.size(), ", ", reader.remaining(), " bytes left"));
  }
  absl::Status status = ValidateManifest(stored.manifest);
  if (status.ok()) status = ValidateChunkTable(stored.manifest, stored.chunks);
  stored.chunks.stored_bytes = stored.manifest.stored_bytes;
  if (!status.ok()) return status;
  return stored;
}

}  // namespace vivarium::statestore
