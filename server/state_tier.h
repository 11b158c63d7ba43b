// StateTier: where the bytes of a source state came from.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vivarium::server {

// The order in which a state is looked for.
enum class StateTier : uint8_t {
  kNone = 0,  // no source
  kDevice = 1,
  kHost = 2,
  kDisk = 3,
};
// "device", "host", "disk"; "none".
std::string_view StateTierName(StateTier tier);
// What is counted of each.
struct TierCounts {
  uint64_t hits = 0;
  uint64_t misses = 0;  // looked for there, and then in the next one
  uint64_t bytes = 0;   // of the hits' slots
};
inline constexpr size_t kNumTiers = 4;  // kNone, of which nothing is counted, included
using AllTierCounts = std::array<TierCounts, kNumTiers>;

}  // namespace vivarium::server
