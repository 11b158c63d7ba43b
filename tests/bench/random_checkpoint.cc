#include "tests/bench/random_checkpoint.h"

#include <span>

namespace vivarium::bench {
namespace {

// "backbone.layers.17.mixer.D" -> "mixer.D"; other names as they are.
std::string NameInLayer(const std::string& name) {
  constexpr std::string_view kLayers = "backbone.layers.";
  if (!name.starts_with(kLayers)) return name;
  return name.substr(name.find('.', kLayers.size()) + 1);
}

}  // namespace

RandomCheckpoint::RandomCheckpoint(const test::MambaSpec& spec) : files_{"random weights"} {
  for (const test::RandomTensor& tensor : test::MambaTensors(spec)) {
    std::string& bytes = bytes_[NameInLayer(tensor.name)];
    if (bytes.empty()) bytes = test::EncodeValues(tensor.Values(), tensor.dtype);
    tensors_[tensor.name] = {tensor.dtype, tensor.shape, std::as_bytes(std::span(bytes)), files_[0],
                             0};
  }
}

const engine::TensorView* RandomCheckpoint::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace vivarium::bench
