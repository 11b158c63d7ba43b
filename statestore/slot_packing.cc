#include "statestore/slot_packing.h"

#include <zstd.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace vivarium::statestore {
namespace {

using engine::StateLayout;
using engine::StatePart;

constexpr int kZstdLevel = 1;  // state bytes gain little from more
constexpr uint16_t kLargestFiniteBF16 = 0x7f7f;
constexpr uint16_t kBF16Sign = 0x8000;

// To nearest even; a finite number stays finite.
uint16_t ToBF16(float value) {
  const uint16_t bits = kernels::F32ToBF16(value);
  const bool overflowed = std::isfinite(value) && (bits & ~kBF16Sign) > kLargestFiniteBF16;
  return overflowed ? static_cast<uint16_t>((bits & kBF16Sign) | kLargestFiniteBF16) : bits;
}

float LoadF32(const std::byte* bytes) {
  float value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// Calls `visit(begin, end, is_rounded)` for the runs of slot bytes that are packed alike, in order.
template <typename Visit>
void ForEachRun(const StateLayout& layout, uint64_t begin_bytes, uint64_t end_bytes, Visit visit) {
  uint64_t next = begin_bytes;
  for (const StatePart& part : layout.parts) {
    if (!IsRoundedPart(part)) continue;
    const uint64_t begin = std::max(part.offset_bytes, next);
    const uint64_t end = std::min(part.offset_bytes + part.size_bytes, end_bytes);
    if (begin >= end) continue;
    if (next < begin) visit(next, begin, false);
    visit(begin, end, true);
    next = end;
  }
  if (next < end_bytes) visit(next, end_bytes, false);
}

std::string PackBF16(const StateLayout& layout, uint64_t begin_bytes,
                     std::span<const std::byte> slot_bytes) {
  std::string packed;
  packed.reserve(slot_bytes.size());
  const std::byte* const base = slot_bytes.data();
  ForEachRun(layout, begin_bytes, begin_bytes + slot_bytes.size(),
             [&](uint64_t begin, uint64_t end, bool is_rounded) {
               const std::byte* const from = base + (begin - begin_bytes);
               const uint64_t num_bytes = end - begin;
               if (!is_rounded) {
                 packed.append(reinterpret_cast<const char*>(from), num_bytes);
                 return;
               }
               const size_t offset = packed.size();
               packed.resize(offset + num_bytes / 2);
               for (uint64_t i = 0; i < num_bytes / 4; ++i) {
                 const uint16_t bits = ToBF16(LoadF32(from + 4 * i));
                 std::memcpy(packed.data() + offset + 2 * i, &bits, sizeof(bits));
               }
             });
  return packed;
}

void UnpackBF16(const StateLayout& layout, uint64_t begin_bytes, std::string_view packed,
                std::span<std::byte> slot_bytes) {
  const char* from = packed.data();
  ForEachRun(layout, begin_bytes, begin_bytes + slot_bytes.size(),
             [&](uint64_t begin, uint64_t end, bool is_rounded) {
               std::byte* const to = slot_bytes.data() + (begin - begin_bytes);
               const uint64_t num_bytes = end - begin;
               if (!is_rounded) {
                 std::memcpy(to, from, num_bytes);
                 from += num_bytes;
                 return;
               }
               kernels::ConvertToF32(from, kernels::DType::kBF16, num_bytes / 4,
                                     reinterpret_cast<float*>(to));
               from += num_bytes / 2;
             });
}

absl::Status WrongSize(StateCodec codec, uint64_t found_bytes, uint64_t expected_bytes) {
  return absl::DataLossError(absl::StrCat("chunk packed as ", std::string(StateCodecName(codec)),
                                          ": ", found_bytes, " bytes, expected ", expected_bytes));
}

}  // namespace

std::string_view StateCodecName(StateCodec codec) {
  switch (codec) {
    case StateCodec::kRaw:
      return "raw";
    case StateCodec::kZstd:
      return "zstd";
    case StateCodec::kBF16:
      return "bf16";
  }
  return "unknown";
}

std::optional<StateCodec> StateCodecFor(std::string_view name) {
  for (StateCodec codec : {StateCodec::kRaw, StateCodec::kZstd, StateCodec::kBF16}) {
    if (name == StateCodecName(codec)) return codec;
  }
  return std::nullopt;
}

bool IsRoundedPart(const StatePart& part) {
  return part.dtype == kernels::DType::kF32 && absl::EndsWith(part.name, ".ssm");
}

PackedSize PackedBytes(const StateLayout& layout, StateCodec codec, uint64_t begin_bytes,
                       uint64_t end_bytes) {
  const uint64_t num_bytes = end_bytes - begin_bytes;
  if (codec == StateCodec::kZstd) return {1, ZSTD_compressBound(num_bytes)};
  if (codec == StateCodec::kRaw) return {num_bytes, num_bytes};
  uint64_t packed_bytes = 0;
  ForEachRun(layout, begin_bytes, end_bytes, [&](uint64_t begin, uint64_t end, bool is_rounded) {
    packed_bytes += is_rounded ? (end - begin) / 2 : end - begin;
  });
  return {packed_bytes, packed_bytes};
}

std::string Pack(const StateLayout& layout, StateCodec codec, uint64_t begin_bytes,
                 std::span<const std::byte> slot_bytes) {
  if (codec == StateCodec::kBF16) return PackBF16(layout, begin_bytes, slot_bytes);
  assert(codec == StateCodec::kZstd);
  std::string packed(ZSTD_compressBound(slot_bytes.size()), '\0');
  const size_t num_bytes =
      ZSTD_compress(packed.data(), packed.size(), slot_bytes.data(), slot_bytes.size(), kZstdLevel);
  assert(ZSTD_isError(num_bytes) == 0);  // it fails for too little room only
  packed.resize(num_bytes);
  return packed;
}

absl::Status Unpack(const StateLayout& layout, StateCodec codec, uint64_t begin_bytes,
                    std::string_view packed, std::span<std::byte> slot_bytes) {
  if (codec == StateCodec::kZstd) {
    const size_t num_bytes =
        ZSTD_decompress(slot_bytes.data(), slot_bytes.size(), packed.data(), packed.size());
    if (ZSTD_isError(num_bytes) != 0) {
      return absl::DataLossError(
          absl::StrCat("chunk packed as zstd: ", ZSTD_getErrorName(num_bytes)));
    }
    return num_bytes == slot_bytes.size() ? absl::OkStatus()
                                          : WrongSize(codec, num_bytes, slot_bytes.size());
  }
  const uint64_t expected_bytes =
      PackedBytes(layout, codec, begin_bytes, begin_bytes + slot_bytes.size()).min_bytes;
  if (packed.size() != expected_bytes) return WrongSize(codec, packed.size(), expected_bytes);
  if (codec == StateCodec::kBF16) {
    UnpackBF16(layout, begin_bytes, packed, slot_bytes);
  } else if (!packed.empty()) {
    std::memcpy(slot_bytes.data(), packed.data(), packed.size());
  }
  return absl::OkStatus();
}

StorageLoss MeasureLoss(const StateLayout& layout, StateCodec codec,
                        const engine::StateBuffer& slot) {
  StorageLoss loss;
  if (codec != StateCodec::kBF16) return loss;
  ForEachRun(layout, 0, slot.size(), [&](uint64_t begin, uint64_t end, bool is_rounded) {
    if (!is_rounded) return;
    for (uint64_t offset = begin; offset < end; offset += 4) {
      const double before = LoadF32(slot.data() + offset);
      if (!std::isfinite(before)) continue;
      const double after = kernels::BF16ToF32(ToBF16(static_cast<float>(before)));
      const double error = std::abs(after - before);
      loss.max_absolute_error = std::max(loss.max_absolute_error, error);
      if (before != 0) {
        loss.max_relative_error = std::max(loss.max_relative_error, error / std::abs(before));
      }
    }
  });
  return loss;
}

void RoundSlot(const StateLayout& layout, StateCodec codec, engine::StateBuffer* slot) {
  if (codec != StateCodec::kBF16) return;
  UnpackBF16(layout, 0, PackBF16(layout, 0, slot->span()), slot->span());
}

}  // namespace vivarium::statestore
