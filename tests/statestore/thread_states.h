// States of threads whose tokens are known, for tests of FindPrefix.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "statestore/state_store.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {

using Ids = std::vector<int32_t>;

// The state `number` that goes on from `parent` (null: from nothing) by the tokens `ids`: the last
// one is pending, all before it are consumed.
inline SavedState ThreadState(uint64_t number, const StateManifest* parent, const Ids& ids) {
  SavedState state = SampleState(SampleId(number), number);
  StateManifest& manifest = state.manifest;
  manifest.transcript.clear();
  for (const int32_t id : ids) manifest.transcript.push_back({id, id % 2 == 0});
  manifest.position = ids.size() - 1;
  if (parent != nullptr) {
    manifest.parent_id = parent->id;
    manifest.identity = parent->identity;
    manifest.position = parent->position + ids.size();
    manifest.pending_token = parent->pending_token;
  }
  if (!ids.empty()) manifest.pending_token = ids.back();
  return state;
}

inline PrefixQuery QueryOf(const Ids& prompt) {
  return {SampleManifest(SampleId(0), 0).identity, prompt, {}};
}

}  // namespace vivarium::statestore
