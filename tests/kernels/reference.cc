#include "tests/kernels/reference.h"

#include <cmath>

namespace vivarium::kernels {
namespace {

Reference Zeros(int64_t count) {
  const auto size = static_cast<size_t>(count);
  return {std::vector<double>(size), std::vector<double>(size)};
}

void SetAt(Reference* r, int64_t index, double value, double magnitude) {
  r->value[static_cast<size_t>(index)] = value;
  r->magnitude[static_cast<size_t>(index)] = magnitude;
}

}  // namespace

double ReferenceSoftplus(double v) { return v > 20.0 ? v : std::log1p(std::exp(v)); }
double ReferenceSilu(double v) { return v / (1.0 + std::exp(-v)); }

Reference ReferenceLinear(const float* x, int64_t x_stride, const float* w, const float* bias,
                          int64_t num_tokens, int64_t rows, int64_t cols) {
  Reference result = Zeros(num_tokens * rows);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      double sum = bias == nullptr ? 0.0 : bias[n];
      double magnitude = std::abs(sum);
      for (int64_t k = 0; k < cols; ++k) {
        const double product = static_cast<double>(x[t * x_stride + k]) * w[n * cols + k];
        sum += product;
        magnitude += std::abs(product);
      }
      SetAt(&result, t * rows + n, sum, magnitude);
    }
  }
  return result;
}

Reference ReferenceRmsNorm(const RmsNormParams& params) {
  const int64_t channels = params.channels;
  Reference result = Zeros(params.num_tokens * channels);
  for (int64_t t = 0; t < params.num_tokens; ++t) {
    std::vector<double> v(static_cast<size_t>(channels)), terms(static_cast<size_t>(channels));
    double mean_square = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      const double x = params.x == nullptr ? 0.0 : params.x[t * params.x_stride + c];
      const double old = params.residual == nullptr ? 0.0 : params.residual[t * channels + c];
      v[static_cast<size_t>(c)] = x + old;
      terms[static_cast<size_t>(c)] = std::abs(x) + std::abs(old);
      mean_square += v[static_cast<size_t>(c)] * v[static_cast<size_t>(c)] / channels;
    }
    const double scale = 1.0 / std::sqrt(mean_square + params.eps);
    for (int64_t c = 0; c < channels; ++c) {
      const double weight = params.weight == nullptr ? 1.0 : params.weight[c];
      SetAt(&result, t * channels + c, v[static_cast<size_t>(c)] * scale * weight,
            terms[static_cast<size_t>(c)] * scale * std::abs(weight));
    }
  }
  return result;
}

StatefulReference ReferenceCausalConv1d(const CausalConv1dParams& params, int64_t num_tokens) {
  const int64_t channels = params.channels;
  const int64_t history = params.width - 1;
  StatefulReference result{Zeros(num_tokens * channels), {}};
  for (int64_t s = 0; s < params.num_segments; ++s) {
    const Segment& segment = params.segments[s];
    Reference state = Zeros(history * channels);
    for (int64_t c = 0; c < channels; ++c) {
      std::vector<double> inputs;  // the state's inputs, then the segment's
      for (int64_t j = 0; j < history; ++j) {
        inputs.push_back(
            segment.read_slot == kPadSlot
                ? 0.0
                : params.states[segment.read_slot * params.slot_stride + j * channels + c]);
      }
      for (int64_t t = 0; t < segment.num_tokens; ++t) {
        inputs.push_back(params.x[(segment.token_begin + t) * params.x_stride + c]);
        double sum = params.bias == nullptr ? 0.0 : params.bias[c];
        double magnitude = std::abs(sum);
        for (int64_t j = 0; j < params.width; ++j) {
          const double product =
              params.weight[j * channels + c] * inputs[static_cast<size_t>(t + j)];
          sum += product;
          magnitude += std::abs(product);
        }
        SetAt(&result.out, (segment.token_begin + t) * channels + c, ReferenceSilu(sum), magnitude);
      }
      for (int64_t j = 0; j < history; ++j) {
        const double input = inputs[inputs.size() - static_cast<size_t>(history - j)];
        SetAt(&state, j * channels + c, input, 0.0);  // copied: exact
      }
    }
    result.states.push_back(std::move(state));
  }
  return result;
}

StatefulReference ReferenceSelectiveScan(const SelectiveScanParams& params, int64_t num_tokens) {
  const int64_t channels = params.channels;
  const int64_t num_tiles = (channels + kChannelTile - 1) / kChannelTile;
  StatefulReference result{Zeros(num_tokens * channels), {}};
  for (int64_t s = 0; s < params.num_segments; ++s) {
    const Segment& segment = params.segments[s];
    Reference state = Zeros(num_tiles * params.d_state * kChannelTile);
    for (int64_t ch = 0; ch < channels; ++ch) {
      const auto at = [&](int64_t n) {
        return (ch / kChannelTile * params.d_state + n) * kChannelTile + ch % kChannelTile;
      };
      std::vector<double> h(static_cast<size_t>(params.d_state)), m(h.size());
      for (int64_t n = 0; n < params.d_state && segment.read_slot != kPadSlot; ++n) {
        h[static_cast<size_t>(n)] = static_cast<const float*>(
            params.states)[segment.read_slot * params.slot_stride + at(n)];
        m[static_cast<size_t>(n)] = std::abs(h[static_cast<size_t>(n)]);
      }
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.num_tokens; ++t) {
        const double x = params.x[t * params.x_stride + ch];
        const double dt = ReferenceSoftplus(
            static_cast<double>(params.dt[t * params.dt_stride + ch]) + params.dt_bias[ch]);
        double sum = params.d_skip[ch] * x;
        double magnitude = std::abs(sum);
        for (int64_t n = 0; n < params.d_state; ++n) {
          const auto i = static_cast<size_t>(n);
          const double decay = std::exp(dt * params.a[at(n)]);
          const double input = dt * x * params.b[t * params.bc_stride + n];
          h[i] = decay * h[i] + input;
          m[i] = decay * m[i] + std::abs(input);
          sum += params.c[t * params.bc_stride + n] * h[i];
          magnitude += std::abs(params.c[t * params.bc_stride + n]) * m[i];
        }
        const double gate = ReferenceSilu(params.z[t * params.z_stride + ch]);
        SetAt(&result.out, t * channels + ch, sum * gate, magnitude * std::abs(gate));
      }
      for (int64_t n = 0; n < params.d_state; ++n) {
        SetAt(&state, at(n), h[static_cast<size_t>(n)], m[static_cast<size_t>(n)]);
      }
    }
    result.states.push_back(std::move(state));
  }
  return result;
}

}  // namespace vivarium::kernels
