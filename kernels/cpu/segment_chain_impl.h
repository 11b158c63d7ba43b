// Chains of segments (see Segment in ops.h).
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace vivarium::kernels {
namespace {

// Segments of the chain that begins with segment `head`: 1 for a segment by itself.
inline int64_t ChainLength(const Segment* segments, int64_t num_segments, int64_t head) {
  int64_t length = 1;
  while (head + length < num_segments && segments[head + length].read_slot == kPreviousSegment) {
    ++length;
  }
  return length;
}

}  // namespace
}  // namespace vivarium::kernels
