// RMS norm of a range of tokens (see RmsNormParams in ops.h).
#pragma once

namespace vivarium::kernels {
namespace {

inline int LanesAt(int64_t channel, int64_t channels) {
  return channels - channel < kLanes ? static_cast<int>(channels - channel) : kLanes;
}

// Adds x to the residual where both are given. Returns the row to be normalised.
inline const float* AddResidual(const RmsNormParams& params, int64_t t) {
  const float* x = params.x == nullptr ? nullptr : params.x + t * params.x_stride;
  if (params.residual == nullptr) return x;
  float* residual = params.residual + t * params.channels;
  if (x == nullptr) return residual;
  for (int64_t c = 0; c < params.channels; c += kLanes) {
    const int count = LanesAt(c, params.channels);
    StorePartial(residual + c, Add(LoadPartial(residual + c, count), LoadPartial(x + c, count)),
                 count);
  }
  return residual;
}

void RmsNorm(const RmsNormParams& params, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* row = AddResidual(params, t);
    // One accumulator of sixteen lanes over the channels, then the lanes by halves.
    Vec squares = Set(0.0f);
    for (int64_t c = 0; c < params.channels; c += kLanes) {
      const Vec v = LoadPartial(row + c, LanesAt(c, params.channels));
      squares = MulAdd(v, v, squares);
    }
    const float mean = ReduceAdd(squares) / static_cast<float>(params.channels);
    const Vec scale = Set(1.0f / SquareRoot(mean + params.eps));
    float* out = params.out + t * params.out_stride;
    for (int64_t c = 0; c < params.channels; c += kLanes) {
      const int count = LanesAt(c, params.channels);
      Vec v = Mul(LoadPartial(row + c, count), scale);
      if (params.weight != nullptr) v = Mul(v, LoadPartial(params.weight + c, count));
      StorePartial(out + c, v, count);
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
