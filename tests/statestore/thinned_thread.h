// The thread that thinning_writer writes and thinning_kill_test reads.
#pragma once

#include <cstdint>

#include "statestore/state_store.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {

inline constexpr uint64_t kThreadEveryTokens = 16;
inline constexpr size_t kThreadNumNewest = 2;

// Snapshot `number`, from 1 on, as it is before it thins anything.
inline SavedState ThreadSnapshot(uint64_t number) {
  SavedState state = SampleState(SampleId(number), number);
  state.manifest.position = kThreadEveryTokens * number;
  if (number > 1) state.manifest.parent_id = SampleId(number - 1);
  return state;
}

}  // namespace vivarium::statestore
