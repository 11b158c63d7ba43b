// Embedding rows of a range of tokens, widened to f32 (see EmbeddingGatherParams in ops.h).
#pragma once

namespace vivarium::kernels {
namespace {

void EmbeddingGather(const EmbeddingGatherParams& params, int64_t begin, int64_t end) {
  const int64_t d_model = params.d_model;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t first = params.token_ids[t] * d_model;
    float* out = params.out + t * d_model;
    if (params.table_dtype == DType::kF32) {
      const float* row = static_cast<const float*>(params.table) + first;
      for (int64_t c = 0; c < d_model; ++c) out[c] = row[c];
      continue;
    }
    const uint16_t* row = static_cast<const uint16_t*>(params.table) + first;
    int64_t c = 0;
    for (; c + kLanes <= d_model; c += kLanes) Store(out + c, LoadBF16(row + c));
    if (c < d_model) {
      uint16_t tail[kLanes] = {};
      for (int64_t i = c; i < d_model; ++i) tail[i - c] = row[i];
      StorePartial(out + c, LoadBF16(tail), static_cast<int>(d_model - c));
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
