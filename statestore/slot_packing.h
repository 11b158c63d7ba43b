// How a slot's bytes are packed into the payloads of its chunks: as they are, compressed, or with
// the SSM part rounded to bf16. A packing is about stored bytes only; what comes back is always a
// slot of the same layout.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/runtime/state.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

inline constexpr uint8_t kNumStateCodecs = 3;

// "raw", "zstd", "bf16".
std::string_view StateCodecName(StateCodec codec);
// Nothing for another name.
std::optional<StateCodec> StateCodecFor(std::string_view name);

// Whether bf16 rounds this part: one of SSM whose live dtype is f32. Others are stored as they are.
bool IsRoundedPart(const engine::StatePart& part);

// The fewest and the most bytes that slot bytes [begin_bytes, end_bytes) take when packed.
struct PackedSize {
  uint64_t min_bytes = 0;
  uint64_t max_bytes = 0;
};
PackedSize PackedBytes(const engine::StateLayout& layout, StateCodec codec, uint64_t begin_bytes,
                       uint64_t end_bytes);

// The packed form of the slot's bytes from `begin_bytes` on, a multiple of 64. `codec` isn't kRaw.
std::string Pack(const engine::StateLayout& layout, StateCodec codec, uint64_t begin_bytes,
                 std::span<const std::byte> slot_bytes);
// The reverse. DATA_LOSS when `packed` is not what fills `slot_bytes`, which then may be garbage.
absl::Status Unpack(const engine::StateLayout& layout, StateCodec codec, uint64_t begin_bytes,
                    std::string_view packed, std::span<std::byte> slot_bytes);

// What Pack and Unpack make of the numbers: zeros for codecs without loss. Relative to the
// magnitude of the number before; of finite numbers only.
StorageLoss MeasureLoss(const engine::StateLayout& layout, StateCodec codec,
                        const engine::StateBuffer& slot);
// The slot as it will come back.
void RoundSlot(const engine::StateLayout& layout, StateCodec codec, engine::StateBuffer* slot);

}  // namespace vivarium::statestore
