#include "tests/support/reference_mamba.h"

#include <cmath>

namespace vivarium::test {
namespace {

constexpr double kNormEps = 1e-5;
constexpr double kMixerNormEps = 1e-6;

double Silu(double v) { return v / (1.0 + std::exp(-v)); }
double Softplus(double v) { return v > 20.0 ? v : std::log1p(std::exp(v)); }

// x / sqrt(mean(x^2) + eps), in place.
void Normalise(double* x, int64_t count, double eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(count) + eps);
  for (int64_t i = 0; i < count; ++i) x[i] *= scale;
}

std::vector<double> RmsNorm(std::vector<double> x, const std::vector<float>& weight) {
  Normalise(x.data(), static_cast<int64_t>(x.size()), kNormEps);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= weight[i];
  return x;
}

std::vector<double> MatVec(const std::vector<float>& matrix, const std::vector<double>& x) {
  std::vector<double> y(matrix.size() / x.size(), 0.0);
  for (size_t row = 0; row < y.size(); ++row) {
    for (size_t col = 0; col < x.size(); ++col) y[row] += matrix[row * x.size() + col] * x[col];
  }
  return y;
}

}  // namespace

ReferenceMamba::ReferenceMamba(const MambaSpec& spec) : spec_(spec) {
  for (const RandomTensor& tensor : MambaTensors(spec)) weights_[tensor.name] = tensor.Values();
  const size_t layers = static_cast<size_t>(spec.num_layers);
  conv_states_.assign(layers, std::vector<double>(spec.d_inner * (spec.d_conv - 1), 0.0));
  ssm_states_.assign(layers, std::vector<double>(spec.d_inner * spec.d_state, 0.0));
}

std::vector<double> ReferenceMamba::Affine(const std::string& prefix,
                                           const std::vector<double>& x) const {
  std::vector<double> y = MatVec(Weight(prefix + ".weight"), x);
  if (const auto bias = weights_.find(prefix + ".bias"); bias != weights_.end()) {
    for (size_t i = 0; i < y.size(); ++i) y[i] += bias->second[i];
  }
  return y;
}

std::vector<double> ReferenceMamba::Mixer(int64_t layer, const std::vector<double>& h) {
  const std::string prefix = "backbone.layers." + std::to_string(layer) + ".mixer.";
  const int64_t d_inner = spec_.d_inner;
  const int64_t d_state = spec_.d_state;
  const int64_t d_conv = spec_.d_conv;
  const std::vector<double> xz = Affine(prefix + "in_proj", h);

  std::vector<double> x(d_inner);
  std::vector<double>& window = conv_states_[layer];
  for (int64_t c = 0; c < d_inner; ++c) {
    std::vector<double> inputs(window.begin() + c * (d_conv - 1),
                               window.begin() + (c + 1) * (d_conv - 1));
    inputs.push_back(xz[c]);
    double sum = spec_.has_conv_bias ? Weight(prefix + "conv1d.bias")[c] : 0.0;
    for (int64_t j = 0; j < d_conv; ++j) {
      sum += Weight(prefix + "conv1d.weight")[c * d_conv + j] * inputs[j];
    }
    x[c] = Silu(sum);
    for (int64_t j = 0; j + 1 < d_conv; ++j) window[c * (d_conv - 1) + j] = inputs[j + 1];
  }

  std::vector<double> dbl = MatVec(Weight(prefix + "x_proj.weight"), x);
  if (spec_.is_falcon) {
    Normalise(dbl.data(), spec_.dt_rank, kMixerNormEps);
    Normalise(dbl.data() + spec_.dt_rank, d_state, kMixerNormEps);
    Normalise(dbl.data() + spec_.dt_rank + d_state, d_state, kMixerNormEps);
  }
  const std::vector<double> low_rank(dbl.begin(), dbl.begin() + spec_.dt_rank);
  const std::vector<double> dt = Affine(prefix + "dt_proj", low_rank);

  std::vector<double> y(d_inner);
  std::vector<double>& state = ssm_states_[layer];
  for (int64_t c = 0; c < d_inner; ++c) {
    const double delta = Softplus(dt[c]);
    y[c] = Weight(prefix + "D")[c] * x[c];
    for (int64_t n = 0; n < d_state; ++n) {
      const double a = -std::exp(static_cast<double>(Weight(prefix + "A_log")[c * d_state + n]));
      double& element = state[c * d_state + n];
      element = std::exp(delta * a) * element + delta * dbl[spec_.dt_rank + n] * x[c];
      y[c] += dbl[spec_.dt_rank + d_state + n] * element;
    }
    y[c] *= Silu(xz[d_inner + c]);
  }
  return Affine(prefix + "out_proj", y);
}

std::vector<double> ReferenceMamba::Step(int32_t token) {
  const std::string embedding = spec_.naming == Naming::kHuggingFace ? "backbone.embeddings.weight"
                                                                     : "backbone.embedding.weight";
  const std::vector<float>& table = Weight(embedding);
  const auto row = table.begin() + token * spec_.d_model;
  std::vector<double> residual(row, row + spec_.d_model);
  for (int64_t layer = 0; layer < spec_.num_layers; ++layer) {
    const std::string norm = "backbone.layers." + std::to_string(layer) + ".norm.weight";
    const std::vector<double> mixed = Mixer(layer, RmsNorm(residual, Weight(norm)));
    for (size_t i = 0; i < residual.size(); ++i) residual[i] += mixed[i];
  }
  const std::vector<double> normed = RmsNorm(residual, Weight("backbone.norm_f.weight"));
  return MatVec(spec_.is_tied ? table : Weight("lm_head.weight"), normed);
}

}  // namespace vivarium::test
