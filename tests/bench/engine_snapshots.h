// What snapshots of running streams cost the engine.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace vivarium::bench {

struct SnapshotCost {
  double tokens_per_s_without;  // all streams together, best of the rounds
  double tokens_per_s_with;
  int64_t num_snapshots;  // per round
  // Of the time per token, at one snapshot per stream every 1,000 tokens: the measured cost of a
  // snapshot every `every_tokens`, scaled.
  double percent_per_1000;
};

// Decodes num_streams streams of num_tokens tokens each through an Engine over `model`, in turns
// without and with a snapshot every every_tokens, which is more often than anybody would, so that
// the cost stands out of the noise. Snapshots are copied to host memory and dropped there: no
// store. Wall clock.
absl::StatusOr<SnapshotCost> MeasureSnapshotCost(engine::Model* model, int32_t num_streams,
                                                 uint32_t num_tokens, uint32_t every_tokens,
                                                 int num_rounds);

}  // namespace vivarium::bench
