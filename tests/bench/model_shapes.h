// The shapes that benchmarks know by name: state-spaces' Mamba-1 models.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace vivarium::bench {

struct StackShape {
  std::string_view name;
  int64_t num_layers, d_model, d_inner, dt_rank, vocab_size;
  int32_t d_state, conv_width;
};

inline constexpr std::array<StackShape, 6> kShapes = {{
    {"130m", 24, 768, 1536, 48, 50280, 16, 4},
    {"370m", 48, 1024, 2048, 64, 50280, 16, 4},
    {"790m", 48, 1536, 3072, 96, 50280, 16, 4},
    {"1.4b", 48, 2048, 4096, 128, 50280, 16, 4},
    {"2.8b", 64, 2560, 5120, 160, 50280, 16, 4},
    {"tiny", 2, 48, 96, 3, 200, 16, 4},  // for emulated devices
}};

// Null when there is none of that name.
inline const StackShape* FindShape(std::string_view name) {
  for (const StackShape& shape : kShapes) {
    if (shape.name == name) return &shape;
  }
  return nullptr;
}

inline std::string ShapeNames() {
  std::string names;
  for (const StackShape& shape : kShapes) {
    names += (names.empty() ? "" : "|") + std::string(shape.name);
  }
  return names;
}

}  // namespace vivarium::bench
