// The test models of the shapes that benchmarks know by name.
#pragma once

#include "tests/bench/model_shapes.h"
#include "tests/support/mamba_files.h"

namespace vivarium::bench {

// With bf16 weights.
inline test::MambaSpec SpecOf(const StackShape& shape) {
  test::MambaSpec spec;
  spec.num_layers = shape.num_layers;
  spec.d_model = shape.d_model;
  spec.d_inner = shape.d_inner;
  spec.d_state = shape.d_state;
  spec.d_conv = shape.conv_width;
  spec.dt_rank = shape.dt_rank;
  spec.vocab_size = shape.vocab_size;
  spec.dtype = kernels::DType::kBF16;
  return spec;
}

}  // namespace vivarium::bench
