#include "statestore/snapshot_thinning.h"

#include <bit>

namespace vivarium::statestore {
namespace {

// floor(log2(distance)); 0 for 0.
int Level(uint64_t distance) { return distance == 0 ? 0 : std::bit_width(distance) - 1; }

}  // namespace

std::vector<bool> KeptSnapshots(std::span<const uint64_t> positions, size_t num_newest) {
  std::vector<bool> stays(positions.size(), true);
  for (size_t i = 1; i + num_newest < positions.size(); ++i) {
    const int level = Level(positions.back() - positions[i]);
    stays[i] = positions[i] >> level != positions[i - 1] >> level;
  }
  return stays;
}

size_t MaxKeptSnapshots(size_t num_newest, uint64_t every_tokens, uint64_t position) {
  const uint64_t min_distance = num_newest * every_tokens;
  if (position < min_distance) return num_newest;
  return num_newest + 2 * static_cast<size_t>(Level(position) - Level(min_distance) + 1);
}

}  // namespace vivarium::statestore
