// Matrix product of a column panel. Each output has one accumulator that meets k in increasing
// order, whatever the number of rows in the register tile: so a row's bits are the same in a batch
// of one and of seventy.
#pragma once

namespace vivarium::kernels {
namespace {

// Stores kRows x kVectors accumulators, times the scales, plus the bias, to the panel's columns
// that exist.
template <int kRows, int kVectors>
inline void StoreTile(const Vec (&acc)[kRows][kVectors], const LinearPanel& panel, int64_t row) {
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const int begin = v * kLanes;
    const int left = panel.num_columns - begin;
    const int count = left < kLanes ? left : kLanes;
    const Vec bias = panel.bias == nullptr ? Set(0.0f) : LoadPartial(panel.bias + begin, count);
    const Vec scale =
        panel.scales == nullptr ? Set(1.0f) : LoadPartial(panel.scales + begin, count);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec scaled = panel.scales == nullptr ? acc[r][v] : Mul(acc[r][v], scale);
      const Vec sum = panel.bias == nullptr ? scaled : Add(scaled, bias);
      StorePartial(panel.out + (row + r) * panel.out_stride + begin, sum, count);
    }
  }
}

// A panel's first tile reads it from memory, and its arithmetic leaves the reorder window too short
// to keep the memory busy: so tiles of several rows fetch this far ahead (into the next panel at
// the end).
constexpr uintptr_t kPrefetchBytes = 8192;
constexpr int kMinPrefetchRows = 3;

template <int kBytes>
inline void PrefetchAhead(const void* p) {
#pragma GCC unroll 8
  for (int i = 0; i < kBytes; i += 64) {
    // As an integer: the last panel's fetches end outside its memory, where they do nothing.
    __builtin_prefetch(
        reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kPrefetchBytes + i));
  }
}

struct F32Weight {
  using Element = float;
  static Vec Widen(const float* p) { return Load(p); }
};

template <typename Weight, int kRows, int kVectors>
struct WideningTile {
  static void Run(const LinearPanel& panel, int64_t row) {
    const auto* w = static_cast<const typename Weight::Element*>(panel.weight);
    const float* x = static_cast<const float*>(panel.x) + row * panel.x_stride;
    Vec acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Set(0.0f);
    }
    for (int64_t k = 0; k < panel.depth; ++k) {
      Vec column[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) column[v] = Weight::Widen(w + v * kLanes);
      if (kRows >= kMinPrefetchRows && row == 0) {
        PrefetchAhead<kVectors * kLanes * sizeof(typename Weight::Element)>(w);
      }
      w += kVectors * kLanes;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec value = Set(x[r * panel.x_stride + k]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[r][v] = MulAdd(value, column[v], acc[r][v]);
      }
    }
    StoreTile<kRows, kVectors>(acc, panel, row);
  }
};

template <int kRows, int kVectors>
using F32Tile = WideningTile<F32Weight, kRows, kVectors>;

// All rows of a panel of kVectors vectors: full tiles, then one tile of what is left.
template <template <int, int> class Tile, int kVectors>
inline void RunRows(const LinearPanel& panel) {
  int64_t row = 0;
  for (; row + kMaxTileRows <= panel.num_tokens; row += kMaxTileRows) {
    Tile<kMaxTileRows, kVectors>::Run(panel, row);
  }
  static_assert(kMaxTileRows <= 6);
  switch (panel.num_tokens - row) {
    case 1:
      Tile<1, kVectors>::Run(panel, row);
      break;
    case 2:
      Tile<2, kVectors>::Run(panel, row);
      break;
    case 3:
      Tile<3, kVectors>::Run(panel, row);
      break;
    case 4:
      Tile<4, kVectors>::Run(panel, row);
      break;
    case 5:
      Tile<5, kVectors>::Run(panel, row);
      break;
    default:
      break;
  }
}

template <template <int, int> class Tile>
inline void RunPanel(const LinearPanel& panel) {
  const int vectors = (panel.num_columns + kLanes - 1) / kLanes;
  static_assert(kPanelVectors <= 4);
  if (vectors == kPanelVectors) {
    RunRows<Tile, kPanelVectors>(panel);
  } else if constexpr (kPanelVectors > 1) {
    switch (vectors) {
      case 1:
        RunRows<Tile, 1>(panel);
        break;
      case 2:
        RunRows<Tile, 2>(panel);
        break;
      default:
        RunRows<Tile, 3>(panel);
        break;
    }
  }
}

void LinearF32(const LinearPanel& panel) { RunPanel<F32Tile>(panel); }

}  // namespace
}  // namespace vivarium::kernels
