#include "statestore/snapshot_thinning.h"

#include <bit>
#include <utility>

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

std::vector<SnapshotRef> PlanSnapshot(std::vector<SnapshotRef> snapshots, size_t num_newest,
                                      Commit* commit) {
  StateManifest& manifest = commit->states[0].manifest;
  manifest.is_snapshot = true;
  snapshots.push_back({manifest.id, manifest.position});
  std::vector<uint64_t> positions;
  positions.reserve(snapshots.size());
  for (const SnapshotRef& snapshot : snapshots) positions.push_back(snapshot.position);
  const std::vector<bool> stays = KeptSnapshots(positions, num_newest);
  std::vector<SnapshotRef> left;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (stays[i]) {
      left.push_back(std::move(snapshots[i]));
    } else {
      commit->thinned.push_back(std::move(snapshots[i].id));
    }
  }
  manifest.snapshots.assign(left.begin(), left.end() - 1);
  return left;
}

}  // namespace vivarium::statestore
