// Source states: from the nearest place that has them, with what was checked about them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "server/parts.h"
#include "server/state_tier.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// What a source state hands on to the states computed from it, beside its numbers.
struct SourceLineage {
  std::string state_id;          // "" = from nothing
  std::string session;           // that it was made in
  statestore::StorageLoss loss;  // its own and what it inherited
  bool is_snapshot = false;
  uint64_t position = 0;
  std::vector<statestore::SnapshotRef> snapshots;
  std::optional<uint64_t> prefix_hash;
};

struct SourceState {
  std::unique_ptr<engine::StateSnapshot> snapshot;  // without bytes where `hot` has them
  engine::HotLease hot;
  StateTier tier = StateTier::kNone;
  SourceLineage lineage;
};

// A stored state as a source: out of a slot of the device, host memory, or from disk. Which it is
// decides how long this takes and nothing else: the manifest is read from the store and checked in
// any case. Checks that it belongs to the served model. Blocks on the store.
absl::StatusOr<SourceState> LoadSource(const Parts& parts, const std::string& state_id);

// "; the state was still on the device", to go on an explanation with.
const char* ExplainTier(StateTier tier);

// A stream's end state `state_id`, durable by now, is in its slot too: from now on LoadSource finds
// it there. Not where what was stored is not, bit for bit, what the slot holds.
void KeepHot(const Parts& parts, engine::HotId hot_id, const std::string& state_id,
             statestore::StateCodec codec);

// FAILED_PRECONDITION naming both sides when a state belongs to another model or tokenizer.
absl::Status CheckIdentity(const engine::ModelIdentity& served, const engine::ModelIdentity& source,
                           const std::string& state_id);

}  // namespace vivarium::server
