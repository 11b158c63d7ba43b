// ReferenceMamba: a naive Mamba-1 in double precision, written from the paper's equations and
// sharing nothing with the engine: the bottom of the ladder of trust at model level.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/support/mamba_files.h"

namespace vivarium::test {

// One sequence, token by token, from the zero state.
class ReferenceMamba {
 public:
  explicit ReferenceMamba(const MambaSpec& spec);

  // Consumes a token; returns the logits of the next, one per row of the embedding.
  std::vector<double> Step(int32_t token);

  // Layer states: conv [d_inner][d_conv - 1], oldest first; ssm [d_inner][d_state].
  const std::vector<double>& conv_state(int64_t layer) const { return conv_states_[layer]; }
  const std::vector<double>& ssm_state(int64_t layer) const { return ssm_states_[layer]; }

 private:
  const std::vector<float>& Weight(const std::string& name) const { return weights_.at(name); }
  // y = W x + bias, where the bias tensor exists.
  std::vector<double> Affine(const std::string& prefix, const std::vector<double>& x) const;
  std::vector<double> Mixer(int64_t layer, const std::vector<double>& h);

  const MambaSpec spec_;
  std::map<std::string, std::vector<float>> weights_;
  std::vector<std::vector<double>> conv_states_;
  std::vector<std::vector<double>> ssm_states_;
};

}  // namespace vivarium::test
