// SlotPlan: how many states a device has room for, before any of that room is taken.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/runtime/engine.h"

namespace vivarium::engine {

// Left free: what a device's libraries take later, copies of states on their way, fragments. Less
// where there is little memory: kReserveShare of it.
inline constexpr uint64_t kMaxReserveBytes = uint64_t{512} << 20;
inline constexpr uint64_t kReserveShare = 16;
// kAutoSlots on the CPU, whose memory is everybody's: so many slots at most, in this share of what
// is free.
inline constexpr int32_t kMaxAutoHostSlots = 64;
inline constexpr uint64_t kAutoHostShare = 4;
// kAutoSlots on a device that doesn't say what it has.
inline constexpr int32_t kAutoSlotsOfUnknownMemory = 8;

struct SlotPlan {
  int32_t max_slots = 0;
  std::string arithmetic;  // what is taken of how much, in bytes
};

// Streams' slots, those for snapshots, the spare ones and the sampler, against the memory that
// Backend::Memory calls free now, with the model loaded, less the reserve. kAutoSlots: as many as
// fit, but no more than kMaxSlots, the rows of a step, its rows of logits and max_live_streams. The
// other options must be in range. RESOURCE_EXHAUSTED with the arithmetic, and with what would fit,
// when the slots, or not even one, do. Where the memory is not known everything fits.
absl::StatusOr<SlotPlan> PlanSlots(const Model& model, const EngineOptions& options);

}  // namespace vivarium::engine
