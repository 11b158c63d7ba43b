#include "engine/model/state_view.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"

namespace vivarium::engine {
namespace {

using kernels::kChannelTile;

struct LayerParts {
  const StatePart* conv = nullptr;
  const StatePart* ssm = nullptr;
};

absl::StatusOr<LayerParts> FindParts(const ModelConfig& config, const StateLayout& layout,
                                     size_t slot_bytes, int64_t layer_index) {
  if (layer_index < 0 || layer_index >= static_cast<int64_t>(config.layers.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer: expected 0 to ", config.layers.size() - 1, ", found ", layer_index));
  }
  if (slot_bytes != layout.slot_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot: expected ", layout.slot_bytes, " bytes, found ", slot_bytes));
  }
  LayerParts parts;
  const std::string prefix = absl::StrCat("layers.", layer_index, ".");
  for (const StatePart& part : layout.parts) {
    if (part.name == prefix + "conv") parts.conv = &part;
    if (part.name == prefix + "ssm") parts.ssm = &part;
  }
  const std::vector<int64_t> conv_shape{config.d_conv - 1, config.d_inner};
  const std::vector<int64_t> ssm_shape{(config.d_inner + kChannelTile - 1) / kChannelTile,
                                       config.d_state, kChannelTile};
  if (parts.conv == nullptr || parts.ssm == nullptr || parts.conv->shape != conv_shape ||
      parts.ssm->shape != ssm_shape || parts.conv->dtype != kernels::DType::kF32 ||
      (parts.ssm->dtype != kernels::DType::kF32 && parts.ssm->dtype != kernels::DType::kBF16)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: expected parts '", prefix, "conv', f32, and '", prefix,
                     "ssm', f32 or bf16, of this model's shapes, found others"));
  }
  return parts;
}

size_t NumElements(const StatePart& part) {
  return part.size_bytes / kernels::DTypeBytes(part.dtype);
}

std::vector<float> ReadPart(const StatePart& part, std::span<const std::byte> slot) {
  std::vector<float> values(NumElements(part));
  kernels::ConvertToF32(slot.data() + part.offset_bytes, part.dtype, values.size(), values.data());
  return values;
}

void WritePart(const std::vector<float>& values, const StatePart& part, std::span<std::byte> slot) {
  std::byte* const to = slot.data() + part.offset_bytes;
  if (part.dtype == kernels::DType::kF32) {
    if (!values.empty()) std::memcpy(to, values.data(), part.size_bytes);
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = kernels::F32ToBF16(values[i]);
    std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
  }
}

// Index of (channel, n) in the tiled layout [ceil(d_inner/16)][d_state][16].
int64_t TiledIndex(int64_t channel, int64_t n, int64_t d_state) {
  return ((channel / kChannelTile) * d_state + n) * kChannelTile + channel % kChannelTile;
}

}  // namespace

absl::StatusOr<MambaLayerState> ReadLayerState(const ModelConfig& config, const StateLayout& layout,
                                               std::span<const std::byte> slot,
                                               int64_t layer_index) {
  absl::StatusOr<LayerParts> parts = FindParts(config, layout, slot.size(), layer_index);
  if (!parts.ok()) return parts.status();
  const int64_t columns = config.d_conv - 1;
  const std::vector<float> conv = ReadPart(*parts->conv, slot);
  const std::vector<float> ssm = ReadPart(*parts->ssm, slot);
  MambaLayerState state;
  state.conv_state.resize(static_cast<size_t>(config.d_inner * columns));
  state.ssm_state.resize(static_cast<size_t>(config.d_inner * config.d_state));
  for (int64_t c = 0; c < config.d_inner; ++c) {
    for (int64_t j = 0; j < columns; ++j) {
      state.conv_state[c * columns + j] = conv[j * config.d_inner + c];
    }
    for (int64_t n = 0; n < config.d_state; ++n) {
      state.ssm_state[c * config.d_state + n] = ssm[TiledIndex(c, n, config.d_state)];
    }
  }
  return state;
}

absl::Status WriteLayerState(const ModelConfig& config, const StateLayout& layout,
                             int64_t layer_index, const MambaLayerState& state,
                             std::span<std::byte> slot) {
  absl::StatusOr<LayerParts> parts = FindParts(config, layout, slot.size(), layer_index);
  if (!parts.ok()) return parts.status();
  const int64_t columns = config.d_conv - 1;
  const size_t conv_size = static_cast<size_t>(config.d_inner * columns);
  const size_t ssm_size = static_cast<size_t>(config.d_inner * config.d_state);
  if (state.conv_state.size() != conv_size || state.ssm_state.size() != ssm_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer state: expected ", conv_size, " and ", ssm_size, " elements, found ",
                     state.conv_state.size(), " and ", state.ssm_state.size()));
  }
  std::vector<float> conv(NumElements(*parts->conv));
  std::vector<float> ssm(NumElements(*parts->ssm), 0.0f);
  for (int64_t c = 0; c < config.d_inner; ++c) {
    for (int64_t j = 0; j < columns; ++j) {
      conv[j * config.d_inner + c] = state.conv_state[c * columns + j];
    }
    for (int64_t n = 0; n < config.d_state; ++n) {
      ssm[TiledIndex(c, n, config.d_state)] = state.ssm_state[c * config.d_state + n];
    }
  }
  WritePart(conv, *parts->conv, slot);
  WritePart(ssm, *parts->ssm, slot);
  return absl::OkStatus();
}

}  // namespace vivarium::engine
