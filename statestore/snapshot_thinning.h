// Which snapshots of a thread stay: its newest ones, and ever fewer the further back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "statestore/state_store.h"

namespace vivarium::statestore {

inline constexpr size_t kMaxKeptNewest = 64;

// Of snapshots at `positions`, ascending, true for each that stays when a new one has come (the
// last one is the newest):
//   - the newest `num_newest` (1 to kMaxKeptNewest) stay;
//   - of the others, at distance d tokens from the newest one, with 2^j <= d < 2^(j+1), the first
//     one stays in each block of 2^j positions [n 2^j, (n+1) 2^j).
// Blocks double as what is in them falls behind and hold the blocks before, so the rule may be
// applied again and again to what it left. Then:
//   - at most MaxKeptSnapshots are left;
//   - the oldest one always stays;
//   - of a snapshot d tokens back, however long it is gone, there is one left that is at most 2d
//     tokens older.
std::vector<bool> KeptSnapshots(std::span<const uint64_t> positions, size_t num_newest);

// Of snapshots that are `every_tokens` or more apart, the newest at `position`:
//   num_newest + 2 (floor(log2(position)) - floor(log2(num_newest * every_tokens)) + 1),
// or num_newest while the thread is shorter than num_newest * every_tokens.
size_t MaxKeptSnapshots(size_t num_newest, uint64_t every_tokens, uint64_t position);

// Makes the commit's one state a snapshot that follows `snapshots`, which are by position, and has
// the commit thin those that go for it. Returns those that stay, the new one last.
std::vector<SnapshotRef> PlanSnapshot(std::vector<SnapshotRef> snapshots, size_t num_newest,
                                      Commit* commit);

}  // namespace vivarium::statestore
