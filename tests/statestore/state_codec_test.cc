#include "statestore/state_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/dtype.h"
#include "statestore/byte_codec.h"
#include "statestore/record_codec.h"
#include "statestore/slot_packing.h"
#include "statestore/state_validation.h"
#include "tests/statestore/export_files.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kChunkBytes = 256;

StoredManifest Sample(uint64_t seed) {
  const SavedState state = SampleState(SampleId(seed), seed);
  StoredManifest stored{state.manifest, MakeChunkTable(state.slot, kChunkBytes)};
  stored.manifest.stored_bytes = StoredBytes(state.slot.size(), kChunkBytes);
  return stored;
}

// `bytes` with a right checksum again, after a change.
std::string Resign(std::string bytes) {
  bytes.resize(bytes.size() - 8);
  ByteWriter(&bytes).Number<uint64_t>(Checksum(bytes));
  return bytes;
}

TEST(ManifestCodec, RoundTripsEveryField) {
  for (uint64_t seed = 1; seed < 50; ++seed) {
    StoredManifest stored = Sample(seed);
    stored.manifest.parent_id = seed % 2 == 0 ? SampleId(seed + 1000) : "";
    stored.manifest.session = "chat-1.b_C";
    stored.manifest.pinned = seed % 3 == 0;
    stored.manifest.expires =
        seed % 2 == 0 ? absl::InfiniteFuture() : stored.manifest.created + absl::Nanoseconds(17);
    stored.manifest.inherited_loss = {0.25 * static_cast<double>(seed % 2), 0.5};
    stored.manifest.is_snapshot = seed % 4 == 0;
    stored.manifest.position += 3 * seed;
    for (uint64_t n = 0; n < seed % 5; ++n) {
      stored.manifest.snapshots.push_back({SampleId(n), n * seed});
    }
    if (seed % 3 != 0) stored.manifest.prefix_hash = seed % 7;
    const absl::StatusOr<StoredManifest> found = DecodeManifest(EncodeManifest(stored));
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectSameManifest(found->manifest, stored.manifest);
    EXPECT_EQ(found->manifest.stored_bytes, stored.manifest.stored_bytes);
    EXPECT_EQ(found->chunks.chunk_bytes, kChunkBytes);
    EXPECT_EQ(found->chunks.checksums, stored.chunks.checksums);
  }
}

TEST(ManifestCodec, WithoutItsTranscriptTheRestIsTheSame) {
  const StoredManifest stored = Sample(4);
  ASSERT_FALSE(stored.manifest.transcript.empty());
  const absl::StatusOr<StoredManifest> found =
      DecodeManifest(EncodeManifest(stored), ManifestPart::kWithoutTranscript);
  ASSERT_TRUE(found.ok()) << found.status();
  StateManifest expected = stored.manifest;
  expected.transcript.clear();
  ExpectSameManifest(found->manifest, expected);
  EXPECT_EQ(found->chunks.checksums, stored.chunks.checksums);
}

TEST(ManifestCodec, SnapshotRefsAreCheckedAndBounded) {
  const auto code_with = [](std::vector<SnapshotRef> snapshots) {
    StoredManifest stored = Sample(3);
    stored.manifest.position = 1000;
    stored.manifest.snapshots = std::move(snapshots);
    return DecodeManifest(EncodeManifest(stored)).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code_with({{SampleId(1), 5}, {SampleId(2), 5}, {SampleId(3), 1000}}),
            absl::StatusCode::kOk);
  EXPECT_EQ(code_with({{SampleId(1), 5}, {SampleId(2), 4}}), kInvalid);
  EXPECT_EQ(code_with({{SampleId(1), 1001}}), kInvalid);
  EXPECT_EQ(code_with({{"st_1", 5}}), kInvalid);
  EXPECT_EQ(code_with(std::vector<SnapshotRef>(kMaxSnapshotRefs, {SampleId(1), 5})),
            absl::StatusCode::kOk);
  EXPECT_EQ(code_with(std::vector<SnapshotRef>(kMaxSnapshotRefs + 1, {SampleId(1), 5})), kInvalid);
}

TEST(ManifestCodec, EveryFlippedBitAndEveryCutIsDataLoss) {
  const std::string bytes = EncodeManifest(Sample(3));
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    ASSERT_EQ(DecodeManifest(damaged).status().code(), absl::StatusCode::kDataLoss) << bit;
  }
  for (size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_EQ(DecodeManifest(bytes.substr(0, size)).status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST(ManifestCodec, ANewerVersionNamesBoth) {
  std::string bytes = EncodeManifest(Sample(3));
  bytes[4] = 9;
  const absl::Status status = DecodeManifest(Resign(bytes)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 9"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("up to 3"));
}

TEST(ManifestCodec, ABodyThatGoesOnIsRefused) {
  std::string bytes = EncodeManifest(Sample(3));
  bytes.insert(bytes.size() - 8, "x");
  EXPECT_EQ(DecodeManifest(Resign(bytes)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ManifestCodec, HugeCountsTakeNoMemory) {
  // The transcript's count is 4 bytes somewhere: with any 4 bytes all ones nothing may be reserved
  // beyond what the bytes themselves could hold.
  const std::string bytes = EncodeManifest(Sample(3));
  for (size_t offset = 8; offset + 12 <= bytes.size(); ++offset) {
    std::string damaged = bytes;
    damaged.replace(offset, 4, "\xff\xff\xff\xff");
    const absl::StatusOr<StoredManifest> found = DecodeManifest(Resign(damaged));
    if (!found.ok()) {
      EXPECT_NE(found.status().code(), absl::StatusCode::kInternal);
    }
  }
}

TEST(ManifestCodec, TheChunkTableMustFitTheSlot) {
  StoredManifest stored = Sample(3);
  stored.chunks.checksums.pop_back();
  EXPECT_EQ(DecodeManifest(EncodeManifest(stored)).status().code(),
            absl::StatusCode::kInvalidArgument);
  stored = Sample(3);
  stored.chunks.chunk_bytes = 0;
  EXPECT_EQ(DecodeManifest(EncodeManifest(stored)).status().code(),
            absl::StatusCode::kInvalidArgument);
  stored = Sample(3);
  stored.manifest.stored_bytes += 1;
  EXPECT_EQ(DecodeManifest(EncodeManifest(stored)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

std::string Join(const EncodedChunk& chunk) {
  std::string bytes(chunk.envelope.data(), chunk.envelope.size());
  return bytes.append(reinterpret_cast<const char*>(chunk.payload.data()), chunk.payload.size());
}

// Of `state`, and its first chunk.
StoredManifest StoredAs(const SavedState& state, StateCodec codec, uint32_t chunk_bytes,
                        std::string* first_chunk) {
  StoredManifest stored{state.manifest, {chunk_bytes, {}, 0}};
  stored.manifest.codec = codec;
  for (uint64_t i = 0; i < NumChunks(state.slot.size(), chunk_bytes); ++i) {
    EncodedChunk chunk;
    EncodeChunk(state.manifest.layout, codec, state.slot, chunk_bytes, i, &chunk);
    stored.chunks.checksums.push_back(Checksum(Join(chunk)));
    stored.manifest.stored_bytes += Join(chunk).size();
    if (i == 0) *first_chunk = Join(chunk);
  }
  return stored;
}

constexpr StateCodec kCodecs[] = {StateCodec::kRaw, StateCodec::kZstd, StateCodec::kBF16};

TEST(ChunkCodec, RoundTripsAndRefusesDamage) {
  const SavedState state = SampleState(SampleId(1), 1);
  for (StateCodec codec : kCodecs) {
    std::string chunk;
    StoredManifest stored = StoredAs(state, codec, 640, &chunk);
    ASSERT_TRUE(DecodeManifest(EncodeManifest(stored)).ok());
    engine::StateBuffer expected(state.slot.size());
    std::memcpy(expected.data(), state.slot.data(), 640);
    RoundSlot(state.manifest.layout, codec, &expected);
    engine::StateBuffer out(state.slot.size());
    ASSERT_TRUE(DecodeChunk(chunk, stored, 0, &out).ok());
    EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size()), 0);

    for (size_t byte = 0; byte < chunk.size(); ++byte) {
      std::string damaged = chunk;
      damaged[byte] = static_cast<char>(damaged[byte] ^ 0x10);
      ASSERT_EQ(DecodeChunk(damaged, stored, 0, &out).code(), absl::StatusCode::kDataLoss);
    }
    EXPECT_EQ(DecodeChunk(chunk.substr(0, chunk.size() - 1), stored, 0, &out).code(),
              absl::StatusCode::kDataLoss);
    // A right checksum, but not the size, or the codec, that the slot has there.
    stored.chunks.checksums[1] = Checksum(chunk);
    EXPECT_EQ(DecodeChunk(chunk, stored, 1, &out).code(), absl::StatusCode::kDataLoss);
    stored.manifest.codec = codec == StateCodec::kRaw ? StateCodec::kZstd : StateCodec::kRaw;
    EXPECT_EQ(DecodeChunk(chunk, stored, 0, &out).code(), absl::StatusCode::kDataLoss);
  }
}

TEST(ChunkCodec, NewerEnvelopesAreUnimplemented) {
  std::string chunk;
  StoredManifest stored = StoredAs(SampleState(SampleId(1), 1), StateCodec::kRaw, 640, &chunk);
  engine::StateBuffer out(1152);
  for (size_t byte : {0, 2, 4}) {  // version, codec, key id
    std::string newer = chunk;
    newer[byte] = 7;
    stored.chunks.checksums[0] = Checksum(newer);
    EXPECT_EQ(DecodeChunk(newer, stored, 0, &out).code(), absl::StatusCode::kUnimplemented);
  }
  chunk[10] = 7;  // a nonce without a key
  stored.chunks.checksums[0] = Checksum(chunk);
  EXPECT_EQ(DecodeChunk(chunk, stored, 0, &out).code(), absl::StatusCode::kInvalidArgument);
}

TEST(SlotPacking, BF16RoundsF32PartsOfSsmOnlyAndMeasuresIt) {
  SavedState state = SampleState(SampleId(1), 1);
  engine::StateLayout& layout = state.manifest.layout;
  const StorageLoss loss = MeasureLoss(layout, StateCodec::kBF16, state.slot);
  EXPECT_TRUE(loss.is_lossy());
  EXPECT_LE(loss.max_relative_error, 1.0 / 256);  // half a unit in the last of 8 bits
  EXPECT_EQ(MeasureLoss(layout, StateCodec::kZstd, state.slot), StorageLoss());
  engine::StateBuffer rounded = CopyOf(state).slot;
  RoundSlot(layout, StateCodec::kBF16, &rounded);
  double max_error = 0;
  for (const engine::StatePart& part : layout.parts) {
    const bool is_ssm = part.name.ends_with(".ssm");
    for (uint64_t i = part.offset_bytes; i < part.offset_bytes + part.size_bytes; i += 4) {
      float before;
      float after;
      std::memcpy(&before, state.slot.data() + i, 4);
      std::memcpy(&after, rounded.data() + i, 4);
      if (is_ssm) {
        EXPECT_EQ(after, kernels::BF16ToF32(kernels::F32ToBF16(before)));
        max_error = std::max(max_error, std::abs(static_cast<double>(after) - before));
      } else {
        EXPECT_EQ(after, before);
      }
    }
  }
  EXPECT_EQ(max_error, loss.max_absolute_error);
  // What is rounded already loses nothing more, and a live dtype of bf16 is kept bit for bit.
  EXPECT_EQ(MeasureLoss(layout, StateCodec::kBF16, rounded), StorageLoss());
  for (engine::StatePart& part : layout.parts) {
    part.dtype = kernels::DType::kBF16;
    part.size_bytes /= 2;
  }
  EXPECT_EQ(PackedBytes(layout, StateCodec::kBF16, 0, layout.slot_bytes).max_bytes,
            layout.slot_bytes);
  EXPECT_EQ(MeasureLoss(layout, StateCodec::kBF16, state.slot), StorageLoss());
}

TEST(SlotPacking, TheLargestNumbersStayFinite) {
  SavedState state = SampleState(SampleId(1), 1);
  const float largest = std::numeric_limits<float>::max();
  std::memcpy(state.slot.data() + 64, &largest, sizeof(largest));
  RoundSlot(state.manifest.layout, StateCodec::kBF16, &state.slot);
  EXPECT_TRUE(ValidateSlot(state.manifest.layout, state.slot).ok());
  float found;
  std::memcpy(&found, state.slot.data() + 64, sizeof(found));
  EXPECT_NEAR(found / largest, 1, 1.0 / 256);
}

TEST(RecordCodec, SessionsAndRequestsRoundTrip) {
  Session session{kTenant,
                  "a.b",
                  SampleId(2),
                  {SampleId(2), SampleId(1)},
                  "01hf7yat00abcdefghjkmnpqr1",
                  absl::FromUnixNanos(5),
                  absl::FromUnixNanos(7)};
  const absl::StatusOr<Session> found = DecodeSession(EncodeSession(session));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->recent_heads, session.recent_heads);
  EXPECT_EQ(found->etag, session.etag);
  EXPECT_EQ(found->updated, session.updated);

  const RequestRecord request{"r\0/1", "hash", std::string("\0\1result", 8),
                              absl::InfiniteFuture()};
  const std::string bytes = EncodeRequest(kTenant, request);
  const absl::StatusOr<RequestRecord> record = DecodeRequest(kTenant, request.request_id, bytes);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->result, request.result);
  EXPECT_EQ(record->expires, request.expires);
  EXPECT_EQ(DecodeRequest("other", request.request_id, bytes).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(Validation, LayoutsAreCheckedInEveryField) {
  EXPECT_TRUE(ValidateLayout(SampleLayout()).ok());
  const auto code_after = [](auto change) {
    engine::StateLayout layout = SampleLayout();
    change(layout);
    return ValidateLayout(layout).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code_after([](auto& l) { l.version = 2; }), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(code_after([](auto& l) { l.version = 0; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.slot_bytes = 0; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.slot_bytes -= 64; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.slot_bytes += 1; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts.clear(); }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].name.clear(); }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].shape.clear(); }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].shape[0] = -2; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].shape[0] = 3; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].size_bytes += 4; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].offset_bytes = 0; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[1].offset_bytes += 4; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) { l.parts[3].offset_bytes = ~uint64_t{63}; }), kInvalid);
  EXPECT_EQ(code_after([](auto& l) {
              l.parts[3].shape = {int64_t{1} << 32, int64_t{1} << 32};
              l.parts[3].size_bytes = 0;
            }),
            kInvalid);
}

TEST(Validation, SlotsFromOutsideAreFinite) {
  engine::StateBuffer slot = SampleSlot(SampleLayout(), 1);
  EXPECT_TRUE(ValidateSlot(SampleLayout(), slot).ok());
  const auto poke = [&](size_t offset_bytes, float value) {
    engine::StateBuffer changed = SampleSlot(SampleLayout(), 1);
    std::memcpy(changed.data() + offset_bytes, &value, sizeof(value));
    return ValidateSlot(SampleLayout(), changed);
  };
  EXPECT_TRUE(poke(64, std::numeric_limits<float>::max()).ok());
  EXPECT_THAT(std::string(poke(64, std::numeric_limits<float>::infinity()).message()),
              HasSubstr("layers.0.ssm"));
  EXPECT_FALSE(poke(56, -std::numeric_limits<float>::infinity()).ok());
  EXPECT_FALSE(poke(1148, std::numeric_limits<float>::quiet_NaN()).ok());
  EXPECT_THAT(std::string(poke(60, 1.0f).message()), HasSubstr("between the parts"));
}

TEST(Validation, BoundsAreExact) {
  const auto labels = [](size_t num_labels, size_t num_bytes) {
    Labels made;
    for (size_t i = 0; i < num_labels; ++i) {
      std::string key = std::to_string(i);
      made[key + std::string(num_bytes - key.size(), 'x')] = std::string(num_bytes, 'v');
    }
    return made;
  };
  EXPECT_TRUE(ValidateLabels(labels(kMaxLabels, kMaxLabelBytes)).ok());
  EXPECT_FALSE(ValidateLabels(labels(kMaxLabels + 1, 4)).ok());
  EXPECT_FALSE(ValidateLabels(labels(1, kMaxLabelBytes + 1)).ok());
  EXPECT_FALSE(ValidateLabels({{"", "v"}}).ok());
  EXPECT_FALSE(ValidateLabels({{"k", "\xc3"}}).ok());
  EXPECT_FALSE(ValidateLabels({{"k\n", "v"}}).ok());
  EXPECT_TRUE(ValidateLabels({{"κλειδί", "é/\"x\""}}).ok());
  EXPECT_TRUE(ValidateTenant(std::string(kMaxTenantBytes, 'a')).ok());
  EXPECT_FALSE(ValidateTenant(std::string(kMaxTenantBytes + 1, 'a')).ok());
  EXPECT_FALSE(ValidateTenant("").ok());
  EXPECT_FALSE(ValidateTenant("A").ok());
  EXPECT_FALSE(ValidateTenant("a/b").ok());
  EXPECT_TRUE(ValidateSessionName(std::string(kMaxSessionNameBytes, 'Z')).ok());
  EXPECT_FALSE(ValidateSessionName(std::string(kMaxSessionNameBytes + 1, 'Z')).ok());
  EXPECT_FALSE(ValidateSessionName("a/b").ok());
  EXPECT_FALSE(ValidateSessionName("").ok());
  EXPECT_TRUE(ValidateRequestId(std::string(kMaxRequestIdBytes, '\xff')).ok());
  EXPECT_FALSE(ValidateRequestId(std::string(kMaxRequestIdBytes + 1, 'r')).ok());
  EXPECT_TRUE(ValidatePageSize(kMaxPageSize).ok());
  EXPECT_FALSE(ValidatePageSize(kMaxPageSize + 1).ok());
  EXPECT_FALSE(ValidatePageSize(0).ok());
}

}  // namespace
}  // namespace vivarium::statestore
