// What a request must fulfil before it may enter the engine.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

// What an engine can serve.
struct RequestLimits {
  int64_t num_ids;  // usable token ids: 0 .. num_ids - 1
  bool has_tokenizer;
  const ModelIdentity& identity;
  const StateLayout& layout;
  const EngineOptions& options;
};

// The cheap checks of Engine::Submit: INVALID_ARGUMENT naming field, value and limit;
// FAILED_PRECONDITION, naming both sides, for a source of another model, tokenizer or layout.
absl::Status CheckRequest(const EngineRequest& request, const RequestLimits& limits);

}  // namespace vivarium::engine
