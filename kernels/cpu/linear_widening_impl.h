// Matrix product of bf16 weights, widened to f32 as they are loaded: for paths without vdpbf16ps.
#pragma once

#include "kernels/cpu/linear_impl.h"

namespace vivarium::kernels {
namespace {

struct BF16Weight {
  using Element = uint16_t;
  static Vec Widen(const uint16_t* p) { return LoadBF16(p); }
};

template <int kRows, int kVectors>
using BF16Tile = WideningTile<BF16Weight, kRows, kVectors>;

void LinearBF16(const LinearPanel& panel) { RunPanel<BF16Tile>(panel); }

}  // namespace
}  // namespace vivarium::kernels
