#include <cassert>

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {
namespace {
constexpr int64_t kMinChunkUpdates = 16 * 1024;  // of one state element; some microseconds of work
}  // namespace

// Threads take channel tiles: a tile's state belongs to one thread for the whole segment.
void CpuBackend::SelectiveScan(const SelectiveScanParams& params) {
  assert(params.d_state >= 1 && params.d_state <= kMaxStateSize);
  int64_t num_tokens = 0;
  for (int64_t s = 0; s < params.num_segments; ++s) num_tokens += params.segments[s].num_tokens;
  if (num_tokens == 0) return;
  const int64_t num_tiles = (params.channels + kChannelTile - 1) / kChannelTile;
  const int64_t tile_updates = num_tokens * params.d_state * kChannelTile;
  pool_->ParallelFor(num_tiles, kMinChunkUpdates / tile_updates + 1,
                     [&](int64_t begin, int64_t end) { ops_->selective_scan(params, begin, end); });
}

}  // namespace vivarium::kernels
