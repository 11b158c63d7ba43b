// StreamSaver: what one Generate call stores. Its states form a chain parent -> child; the last
// commit also moves the session's head and keeps the result for idempotent retries.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "server/generate_plan.h"
#include "server/parts.h"
#include "server/request.h"
#include "server/session_manager.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// Not thread-safe: one piece of work at a time. Every method but the constructor blocks on the
// store. Holds the session's lease until it is destroyed.
class StreamSaver {
 public:
  struct Origin {
    SourceLineage source;
    // The thread's first tokens, which the engine was spared: they begin the first state's
    // transcript (GeneratePlan::reused_tokens).
    std::vector<engine::TranscriptToken> reused_tokens;
    std::optional<LeasedSession> session;  // the one whose head may move
    HoldSet::Hold request;                 // of the request id, if there is one
    statestore::StateReservation quota;    // for its states
  };
  // `parts` and `params` must outlive it.
  StreamSaver(const Parts* parts, const GenerateParams* params, Origin origin);

  // Stores a snapshot as the next link, and with it thins the older ones of its session. The head
  // does not move. `quota`: its own; the origin's has no part in it but at the prompt's end.
  absl::StatusOr<statestore::StateManifest> Save(std::unique_ptr<engine::StateSnapshot> snapshot,
                                                 bool is_prompt_end,
                                                 statestore::StateReservation quota);

  // The last state of the chain that is durable: a snapshot, else the source; "" = none.
  const std::string& last_state_id() const { return last_id_; }

  struct End {
    std::optional<statestore::StateManifest> state;  // that counts as the end's; stored
    std::string session_etag;                        // after the move; "" = no session
  };
  // The stream's last commit. `make_result` makes the record's result from the end state's id
  // ("" = none). After an error nothing of it is visible: the head stands.
  absl::StatusOr<End> Finish(engine::FinishInfo info,
                             const std::function<std::string(const std::string&)>& make_result);

 private:
  statestore::StateManifest NextManifest(engine::StateSnapshot* snapshot) const;
  // Those of earlier calls that have expired, or were deleted or updated, are none any more.
  void ForgetGoneSnapshots();
  // The last saved state as the one that counts as the end's: nobody may thin it.
  absl::Status KeepLastSaved();
  bool WantsEndState(engine::FinishReason reason) const;
  // The head after the stream: "" = it stands.
  std::string NewHead(engine::FinishReason reason, const std::string& end_state_id) const;
  statestore::StateManifest AsStored(statestore::StateManifest manifest) const;

  const Parts* const parts_;
  const GenerateParams* const params_;
  Origin origin_;
  std::string last_id_;  // the chain's end so far
  // Of the chain and of earlier calls in its session, by position: what thinning may drop.
  std::vector<statestore::SnapshotRef> snapshots_;
  bool has_looked_for_gone_ = false;
  std::optional<statestore::StateManifest> last_saved_;
  std::string prompt_end_id_;
};

}  // namespace vivarium::server
