#include <algorithm>
#include <cassert>

#include "kernels/cpu/cpu_backend.h"

namespace vivarium::kernels {
namespace {
constexpr int64_t kMinChunkElements = 8 * 1024;  // outputs; some microseconds of work
}  // namespace

// Threads take channels, so that no two of them touch one sequence's window.
void CpuBackend::CausalConv1d(const CausalConv1dParams& params) {
  assert(params.width >= 1 && params.width <= kMaxConvWidth);
  int64_t num_tokens = 0;
  for (int64_t s = 0; s < params.num_segments; ++s) num_tokens += params.segments[s].num_tokens;
  if (num_tokens == 0) return;
  const int64_t num_tiles = (params.channels + kChannelTile - 1) / kChannelTile;
  const int64_t min_tiles = kMinChunkElements / (num_tokens * kChannelTile) + 1;
  pool_->ParallelFor(num_tiles, min_tiles, [&](int64_t begin, int64_t end) {
    ops_->causal_conv1d(params, begin * kChannelTile,
                        std::min(end * kChannelTile, params.channels));
  });
}

}  // namespace vivarium::kernels
