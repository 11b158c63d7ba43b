#include "engine/runtime/slot_plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/runtime/engine_loop.h"
#include "engine/runtime/token_sampler.h"

namespace vivarium::engine {
namespace {

uint64_t Product(uint64_t a, uint64_t b) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  return b != 0 && a > kMax / b ? kMax : a * b;
}

uint64_t Sum(uint64_t a, uint64_t b) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  return a > kMax - b ? kMax : a + b;
}

// What one device has, and what a number of streams' slots takes of it.
class Room {
 public:
  Room(const Model& model, const EngineOptions& options)
      : model_(model),
        num_snapshot_slots_(options.snapshot_slots),
        slot_bytes_(model.state_layout().slot_bytes),
        sampler_bytes_(TokenSampler::DeviceBytes(model.max_logit_rows())),
        memory_(model.backend()->Memory()),
        reserve_bytes_(std::min(kMaxReserveBytes, memory_.total_bytes / kReserveShare)) {}

  bool is_known() const { return memory_.total_bytes > 0; }
  bool is_host() const { return model_.backend()->device() == "cpu"; }
  uint64_t free_bytes() const { return memory_.free_bytes; }

  // Of the sampler and all slots.
  uint64_t Bytes(int32_t max_slots) const {
    return Sum(Product(static_cast<uint64_t>(NumSlots(max_slots)), slot_bytes_), sampler_bytes_);
  }
  bool Fits(int32_t max_slots) const {
    return Sum(Bytes(max_slots), reserve_bytes_) <= memory_.free_bytes;
  }
  // The most slots, up to `most`, that fit, in `limit_bytes` too; 0 = none.
  int32_t MostSlots(int32_t most, uint64_t limit_bytes) const {
    int32_t low = 0;  // Bytes grows with the slots
    while (low < most) {
      const int32_t middle = most - (most - low) / 2;
      if (Fits(middle) && Bytes(middle) <= limit_bytes) {
        low = middle;
      } else {
        most = middle - 1;
      }
    }
    return low;
  }

  std::string Arithmetic(int32_t max_slots) const {
    return absl::StrCat(max_slots, " slots + ", num_snapshot_slots_, " for snapshots + ",
                        NumSpare(max_slots), " spare = ", NumSlots(max_slots), " * ", slot_bytes_,
                        " bytes, and ", sampler_bytes_, " for sampling = ", Bytes(max_slots), "; ",
                        reserve_bytes_, " in reserve; ", memory_.free_bytes, " free of ",
                        memory_.total_bytes, ", beside weights of ", model_.weight_bytes(),
                        " and activations of ", model_.activation_bytes());
  }

 private:
  int32_t NumSpare(int32_t max_slots) const { return SpareSlots(*model_.backend(), max_slots); }
  int32_t NumSlots(int32_t max_slots) const {
    return max_slots + num_snapshot_slots_ + NumSpare(max_slots);
  }

  const Model& model_;
  const int32_t num_snapshot_slots_;
  const uint64_t slot_bytes_, sampler_bytes_;
  const kernels::MemoryInfo memory_;
  const uint64_t reserve_bytes_;
};

}  // namespace

absl::StatusOr<SlotPlan> PlanSlots(const Model& model, const EngineOptions& options) {
  const Room room(model, options);
  const bool is_auto = options.max_slots == kAutoSlots;
  // What the options leave room for.
  int32_t most = std::min({kMaxSlots, model.max_batch_tokens(), model.max_logit_rows(),
                           options.max_live_streams, options.max_num_batched_tokens});
  int32_t max_slots = options.max_slots;
  if (is_auto && !room.is_known()) {
    max_slots = std::min(most, kAutoSlotsOfUnknownMemory);
  } else if (is_auto && room.is_host()) {
    // Where memory is so short that a share of it holds not one state, one is still served.
    max_slots = std::max(
        1, room.MostSlots(std::min(most, kMaxAutoHostSlots), room.free_bytes() / kAutoHostShare));
  } else if (is_auto) {
    max_slots = std::max(1, room.MostSlots(most, std::numeric_limits<uint64_t>::max()));
  }
  if (room.is_known() && !room.Fits(max_slots)) {
    const int32_t fitting = room.MostSlots(most, std::numeric_limits<uint64_t>::max());
    return absl::ResourceExhaustedError(
        absl::StrCat("the states don't fit the memory of ", std::string(model.backend()->device()),
                     ": ", room.Arithmetic(max_slots), "; at most ", fitting, " slots fit"));
  }
  return SlotPlan{max_slots, room.Arithmetic(max_slots)};
}

}  // namespace vivarium::engine
