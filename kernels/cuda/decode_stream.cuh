// What the decode kernels share: a block streams row tiles of a packed matrix, bf16 or int8, past
// at most kMaxDecodeRows rows of activations in shared memory.
//
// The order is linear.cuh's: warp s of a block has segment s of K, in steps, and the segments are
// added in order; so the bits are Linear's. What differs is how the weights come: each warp keeps a
// ring of kGroups groups of kGroupSteps steps in shared memory, filled by asynchronous 16-byte
// copies past the first-level cache (int8: 8-byte ones). The ring runs on from one row tile to the
// next, through barriers and epilogues, and it is first filled before the wait for the kernel
// before: weights are constant. A lane reads back only what it has copied itself, so the ring needs
// no barrier.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.cuh"
#include "kernels/ops.h"

namespace vivarium::kernels::cuda {

inline constexpr int kDecodeThreads = kLinearThreads;
inline constexpr int kDecodeWarps = kDecodeThreads / kWarpSize;
static_assert(kMaxDecodeRows == 2 * kTokenTile);
static_assert(kDecodeThreads == kRowTile * kMaxDecodeRows);  // a thread an output of a row tile

inline constexpr int kStepPairs = kStep / 2;

// Pairs from row to row of staged activations: a fragment's eight rows and four pairs are in 32
// different banks.
__host__ __device__ inline int StagedPitch(int64_t cols) {
  constexpr int kBanks = 32;
  const int pairs = static_cast<int>(LinearSteps(cols)) * kStepPairs;
  return (pairs + kBanks - 1) / kBanks * kBanks + 4;
}

// Activations in shared memory, bf16: [num_rows][pitch], K padded with zeros to whole steps.
struct StagedRows {
  uint32_t* pairs;
  int pitch;
  int num_rows;
};

template <typename Fragment>
__device__ __forceinline__ void CopyFragmentAsync(Fragment* shared, const Fragment* source) {
  if constexpr (sizeof(Fragment) == 16) {
    CopyAsync16(shared, source);
  } else {
    static_assert(sizeof(Fragment) == 8);
    CopyAsync8(shared, source);
  }
}

// One warp's weights: its segment of row tiles blockIdx.x, blockIdx.x + gridDim.x, ...
template <typename Fragment, int kGroups, int kGroupSteps>
class WeightStream {
 public:
  static constexpr int kRingFragments = kGroups * kGroupSteps * kWarpSize;  // of a warp
  static constexpr size_t kRingBytes = kDecodeWarps * kRingFragments * sizeof(Fragment);

  // ring: kRingBytes of shared memory, the block's.
  __device__ __forceinline__ WeightStream(const void* weight, int64_t rows, int64_t cols,
                                          void* ring)
      : lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        steps_(static_cast<int>(LinearSteps(cols))),
        begin_(static_cast<int>(threadIdx.x) / kWarpSize * static_cast<int>(SegmentSteps(cols))),
        end_(begin_ + static_cast<int>(SegmentSteps(cols)) < steps_
                 ? begin_ + static_cast<int>(SegmentSteps(cols))
                 : steps_),
        row_tiles_(static_cast<int>((rows + kRowTile - 1) / kRowTile)),
        tile_(begin_ < end_ ? static_cast<int>(blockIdx.x) : row_tiles_),
        step_(begin_),
        fragments_(static_cast<const Fragment*>(weight) + lane_),
        ring_(static_cast<Fragment*>(ring) +
              static_cast<int>(threadIdx.x) / kWarpSize * kRingFragments + lane_) {}

  __device__ __forceinline__ int row_tiles() const { return row_tiles_; }
  // Of K: this warp's segment.
  __device__ __forceinline__ int begin() const { return begin_; }
  __device__ __forceinline__ int end() const { return end_; }

  // Fills the ring, and asks for what follows in the second-level cache.
  __device__ __forceinline__ void Start() {
#pragma unroll
    for (int i = 0; i + 1 < kGroups; ++i) FillGroup();
    const int segment = end_ - begin_;
    if (segment <= 0) return;
    constexpr int kStepBytes = kWarpSize * sizeof(Fragment);
    constexpr int kLines = kStepBytes / kCacheLineBytes;
    const int num_steps =
        kPrefetchBytes / (kStepBytes * kDecodeWarps) / static_cast<int>(gridDim.x);
    const int first = (kGroups - 1) * kGroupSteps;
    for (int i = first + lane_ / kLines; i < first + num_steps; i += kWarpSize / kLines) {
      const int tile = static_cast<int>(blockIdx.x) + i / segment * static_cast<int>(gridDim.x);
      if (tile >= row_tiles_) return;
      const Fragment* line = fragments_ - lane_ + Offset(tile, begin_ + i % segment);
      PrefetchL2(line + lane_ % kLines * (kCacheLineBytes / sizeof(Fragment)));
    }
  }

  // sums += this warp's segment of the next row tile times x.
  template <int kTokenTiles>
  __device__ __forceinline__ void Multiply(MmaC (&sums)[kTokenTiles], const StagedRows& x) {
    for (int step = begin_; step < end_; step += kGroupSteps) {
      CopyWait<kGroups - 2>();
      FillGroup();  // of what the last round has used up
      const Fragment* group = ring_ + read_group_ * kGroupSteps * kWarpSize;
      read_group_ = read_group_ + 1 < kGroups ? read_group_ + 1 : 0;
#pragma unroll
      for (int s = 0; s < kGroupSteps; ++s) {
        if (step + s >= end_) continue;
        const MmaA weight = WidenFragment(group[s * kWarpSize]);
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile) {
          const int row = tile * kTokenTile + lane_ / 4;
          const uint32_t* pairs = x.pairs + row * x.pitch + (step + s) * kStepPairs + lane_ % 4;
          const bool live = row < x.num_rows;
          MmaBF16(sums[tile], weight, MmaB{{live ? pairs[0] : 0, live ? pairs[4] : 0}});
        }
      }
    }
  }

 private:
  // Of all blocks; a third of the cache of sm_90, whose halves may each hold a copy.
  static constexpr int kPrefetchBytes = 16 << 20;

  __device__ __forceinline__ int64_t Offset(int tile, int step) const {
    return (static_cast<int64_t>(tile) * steps_ + step) * kWarpSize;
  }
  // Begins to copy the next group of the next row tile; an empty group past the end.
  __device__ __forceinline__ void FillGroup() {
    Fragment* group = ring_ + fill_group_ * kGroupSteps * kWarpSize;
    if (tile_ < row_tiles_) {
#pragma unroll
      for (int s = 0; s < kGroupSteps; ++s) {
        if (step_ + s < end_) {
          CopyFragmentAsync(group + s * kWarpSize, fragments_ + Offset(tile_, step_ + s));
        }
      }
      step_ += kGroupSteps;
      if (step_ >= end_) {
        step_ = begin_;
        tile_ += gridDim.x;
      }
    }
    CopyCommit();
    fill_group_ = fill_group_ + 1 < kGroups ? fill_group_ + 1 : 0;
  }

  const int lane_, steps_, begin_, end_, row_tiles_;
  int tile_, step_;  // of the next group to fill
  int fill_group_ = 0, read_group_ = 0;
  const Fragment* fragments_;
  Fragment* ring_;
};

// The rings of the kernels that stream large matrices, of the same size for every Fragment: 48 or
// 32 KiB of a block's weights in flight.
inline constexpr int kStreamGroupBytes = 2048;  // of a warp
template <int kTokenTiles, typename Fragment>
using LargeStream =
    WeightStream<Fragment, kTokenTiles == 1 ? 4 : 3,
                 kStreamGroupBytes / static_cast<int>(kWarpSize * sizeof(Fragment))>;

// A row tile's partial sums [segment][token tile][lane].
template <int kTokenTiles>
inline constexpr int kPartialCount = kLinearSegments* kTokenTiles* kWarpSize;

template <int kTokenTiles>
__device__ __forceinline__ void StorePartial(MmaC* partial, const MmaC (&sums)[kTokenTiles]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int segment = static_cast<int>(threadIdx.x) / kWarpSize;
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    partial[(segment * kTokenTiles + tile) * kWarpSize + lane] = sums[tile];
  }
}

// Copies steps [begin, end) of the rows of bf16 activations x [x->num_rows, cols] (stride a
// multiple of 8, 16-byte aligned) to `staged`, by one warp. They are there for this warp when it
// returns.
static __device__ __forceinline__ void StageSegment(const uint16_t* x, int64_t stride, int64_t cols,
                                                    int begin, int end, const StagedRows& staged) {
  constexpr int kChunk = 8;  // values of a copy
  for (int row = 0; row < staged.num_rows; ++row) {
    for (int chunk = begin * 2 + static_cast<int>(threadIdx.x) % kWarpSize; chunk < end * 2;
         chunk += kWarpSize) {
      const int64_t k = static_cast<int64_t>(chunk) * kChunk;
      const uint16_t* source = x + row * stride + k;
      uint32_t* target = staged.pairs + row * staged.pitch + k / 2;
      if (k + kChunk <= cols) {
        CopyAsync16(target, source);
        continue;
      }
      for (int i = 0; i < kChunk; i += 2) {
        const uint32_t low = k + i < cols ? source[i] : 0;
        const uint32_t high = k + i + 1 < cols ? source[i + 1] : 0;
        target[i / 2] = low | high << 16;
      }
    }
  }
  CopyCommit();
  CopyWait<0>();
  __syncwarp();
}

}  // namespace vivarium::kernels::cuda
