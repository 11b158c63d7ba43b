// Chains of segments (see Segment in ops.h): the blocks of a chain's first segment run all of it,
// those of the others have nothing to do.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

// Whether segment `index` goes on from the one before it.
template <typename Params>
__device__ __forceinline__ bool IsContinued(const Params& params, int index) {
  return params.segments[index].read_slot == kPreviousSegment;
}

// A walk along a chain, by the threads of one block together: where it is. (Few members: they stay
// in registers next to the state.)
struct ChainWalk {
  int index;
  int begin;  // the segment's first row
  int end;    // one past its last row
  int32_t write_slot;

  template <typename Params>
  __device__ __forceinline__ ChainWalk(const Params& params, int head) {
    GoTo(params, head);
  }

  // To the next segment; false, and nothing changed, after the chain's last one.
  template <typename Params>
  __device__ __forceinline__ bool Next(const Params& params) {
    if (index + 1 >= params.num_segments || !IsContinued(params, index + 1)) return false;
    GoTo(params, index + 1);
    return true;
  }

 private:
  template <typename Params>
  __device__ __forceinline__ void GoTo(const Params& params, int to) {
    index = to;
    begin = params.segments[to].token_begin;
    end = begin + params.segments[to].num_tokens;
    write_slot = params.segments[to].write_slot;
  }
};

}  // namespace vivarium::kernels::cuda
