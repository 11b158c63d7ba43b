// The parts of a tokenizer.json around its model. Errors as ParseTokenizerJson's.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "engine/text/tokenizer_spec.h"

namespace vivarium::engine {

absl::Status ReadNormalizer(const nlohmann::json& normalizer, TokenizerSpec* spec);
absl::Status ReadPreTokenizer(const nlohmann::json& pre_tokenizer, TokenizerSpec* spec);
absl::Status ReadPostProcessor(const nlohmann::json& post_processor, TokenizerSpec* spec);
// Decoding is by the tokens' bytes; a decoder that says something else is refused.
absl::Status CheckDecoder(const nlohmann::json& decoder);

}  // namespace vivarium::engine
