// The manifest of state_codec.h.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"
#include "statestore/record_frame.h"
#include "statestore/slot_packing.h"
#include "statestore/state_codec.h"
#include "statestore/state_id.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {
namespace {

using engine::StateLayout;
using engine::StatePart;
using engine::TranscriptToken;

constexpr FrameKind kManifestFrame = {"manifest", "VMAN", kManifestVersion};
constexpr size_t kMinPartBytes = 4 + 1 + 1 + 8 + 8;  // empty name, no dimensions
constexpr size_t kMinLabelBytes = 4 + 4;
constexpr size_t kMinSnapshotRefBytes = 4 + 8;
constexpr size_t kTokenBytes = 4;
constexpr size_t kLogitBiasBytes = 4 + 4;
constexpr size_t kChecksumBytes = 8;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();  // InfiniteFuture

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

StateManifest ReadManifestFields(ManifestPart part, ByteReader& reader) {
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
  if (part == ManifestPart::kAll) {
    manifest.transcript = ReadTokens(kMaxTranscriptTokens, reader);
  } else {
    reader.Bytes(kTokenBytes * reader.Count(kMaxTranscriptTokens, kTokenBytes));
  }
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

void WriteLoss(const StorageLoss& loss, ByteWriter& writer) {
  writer.Number<double>(loss.max_absolute_error);
  writer.Number<double>(loss.max_relative_error);
}

StorageLoss ReadLoss(ByteReader& reader) {
  StorageLoss loss;
  loss.max_absolute_error = reader.Number<double>();
  loss.max_relative_error = reader.Number<double>();
  for (double error : {loss.max_absolute_error, loss.max_relative_error}) {
    if (!std::isfinite(error) || std::signbit(error)) reader.Fail();
  }
  return loss;
}

// What version 2 adds.
void WriteStorage(const StateManifest& manifest, ByteWriter& writer) {
  writer.Number<uint8_t>(static_cast<uint8_t>(manifest.codec));
  WriteLoss(manifest.loss, writer);
}

void ReadStorage(ByteReader& reader, StateManifest* manifest) {
  const auto codec = reader.Number<uint8_t>();
  if (codec >= kNumStateCodecs) reader.Fail();
  manifest->codec = static_cast<StateCodec>(codec);
  manifest->loss = ReadLoss(reader);
}

// What version 3 adds.
void WriteThread(const StateManifest& manifest, ByteWriter& writer) {
  WriteLoss(manifest.inherited_loss, writer);
  writer.Number<uint8_t>(manifest.is_snapshot ? 1 : 0);
  writer.Number<uint32_t>(static_cast<uint32_t>(manifest.snapshots.size()));
  for (const SnapshotRef& snapshot : manifest.snapshots) {
    writer.String(snapshot.id);
    writer.Number<uint64_t>(snapshot.position);
  }
  writer.Number<uint8_t>(manifest.prefix_hash.has_value() ? 1 : 0);
  if (manifest.prefix_hash.has_value()) writer.Number<uint64_t>(*manifest.prefix_hash);
}

void ReadThread(ByteReader& reader, StateManifest* manifest) {
  manifest->inherited_loss = ReadLoss(reader);
  manifest->is_snapshot = ReadBool(reader);
  const uint32_t num_snapshots = reader.Count(kMaxSnapshotRefs, kMinSnapshotRefBytes);
  for (uint32_t i = 0; i < num_snapshots && reader.ok(); ++i) {
    StateId id = reader.String(kStateIdChars);
    manifest->snapshots.push_back({std::move(id), reader.Number<uint64_t>()});
  }
  if (ReadBool(reader)) manifest->prefix_hash = reader.Number<uint64_t>();
}

}  // namespace

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
  WriteStorage(manifest, writer);
  WriteThread(manifest, writer);
  writer.Number<uint32_t>(stored.chunks.chunk_bytes);
  writer.Number<uint32_t>(static_cast<uint32_t>(stored.chunks.checksums.size()));
  for (uint64_t checksum : stored.chunks.checksums) writer.Number<uint64_t>(checksum);
  return Frame(kManifestFrame, body);
}

absl::StatusOr<StoredManifest> DecodeManifest(std::string_view bytes, ManifestPart part) {
  absl::StatusOr<std::string_view> body = Unframe(kManifestFrame, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  StoredManifest stored;
  stored.manifest = ReadManifestFields(part, reader);
  if (FrameVersion(bytes) >= 2) ReadStorage(reader, &stored.manifest);
  if (FrameVersion(bytes) >= 3) ReadThread(reader, &stored.manifest);
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
