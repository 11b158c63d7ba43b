// Matrix products of bf16 and int8 weights, widened to f32 as they are loaded: for paths without
// vdpbf16ps and vpdpbusd.
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

struct Int8Weight {
  using Element = int8_t;
  static Vec Widen(const int8_t* p) { return LoadInt8(p); }
};

template <int kRows, int kVectors>
using Int8Tile = WideningTile<Int8Weight, kRows, kVectors>;

void LinearBF16(const LinearPanel& panel) { RunPanel<BF16Tile>(panel); }
void LinearInt8(const LinearPanel& panel) { RunPanel<Int8Tile>(panel); }

}  // namespace
}  // namespace vivarium::kernels
