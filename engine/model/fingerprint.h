// The identity of a model's weights.
#pragma once

#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/model_config.h"

namespace vivarium::engine {

// 32 hex digits of XXH3-128 over the dimensions and constants that the forward pass depends on, and
// over every tensor it uses: canonical name, dtype, shape, content, in the order of names. The same
// for both namings, all file formats, any sharding; a tied head counts once. Not over vocab_size:
// state-spaces states the unpadded number for the weights of which Hugging Face states the padded.
std::string ModelFingerprint(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace vivarium::engine
