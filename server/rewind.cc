#include "server/rewind.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/errors.h"

namespace vivarium::server {
namespace {

using statestore::Session;
using statestore::StateManifest;
using statestore::StateStore;

// From a state to its oldest ancestor, a page at a time.
class AncestorWalk {
 public:
  AncestorWalk(StateStore* store, const Session& session)
      : store_(store), tenant_(session.tenant), next_id_(session.head) {}

  // The next one, without its transcript; nothing past the oldest.
  absl::StatusOr<std::optional<StateManifest>> Next() {
    if (next_ == page_.size()) {
      if (next_id_.empty() || num_read_ >= kMaxRewindStates) return std::optional<StateManifest>();
      auto page = store_->Ancestry(tenant_, next_id_, kRewindPageStates);
      // A parent that the store doesn't know: history ends there.
      if (absl::IsNotFound(page.status()) && num_read_ > 0) return std::optional<StateManifest>();
      if (!page.ok()) return page.status();
      page_ = *std::move(page);
      next_ = 0;
      num_read_ += page_.size();
      next_id_ = page_.back().parent_id;
    }
    StateManifest manifest = std::move(page_[next_++]);
    manifest.transcript.clear();
    return std::optional<StateManifest>(std::move(manifest));
  }

 private:
  StateStore* const store_;
  const std::string tenant_;
  std::string next_id_;
  std::vector<StateManifest> page_;
  size_t next_ = 0;
  size_t num_read_ = 0;
};

std::string Describe(const StateManifest& state) {
  return absl::StrCat(state.position, " (", state.id, ")");
}

absl::Status CantRewind(const std::string& session, const std::string& why) {
  return WithReason(
      absl::FailedPreconditionError(absl::StrCat("session ", session, " can't be rewound: ", why)),
      "CANT_REWIND", {{"session", session}});
}

// `gone` is what was asked for; `newer` and the rest of `walk` are its neighbours.
absl::Status IsGone(const Session& session, const StateManifest& gone,
                    const std::optional<StateManifest>& newer, AncestorWalk walk) {
  std::optional<StateManifest> older;
  do {
    auto next = walk.Next();
    if (!next.ok()) return next.status();
    older = *std::move(next);
  } while (older && older->bytes_dropped);
  std::string nearest;
  if (older)
    absl::StrAppend(&nearest, "; the nearest one before is at position ", Describe(*older));
  if (newer) absl::StrAppend(&nearest, "; the nearest one after is at position ", Describe(*newer));
  return CantRewind(session.name,
                    absl::StrCat("the bytes of state ", gone.id, ", at position ", gone.position,
                                 ", are gone: thinned, deleted or expired", nearest));
}

absl::Status IsNotThere(const Session& session, const RewindTarget& target,
                        const std::optional<StateManifest>& oldest, uint32_t num_steps) {
  if (target.position) {
    return CantRewind(session.name,
                      absl::StrCat("nothing is left at or before position ", *target.position,
                                   oldest ? "; its oldest state is at " + Describe(*oldest) : ""));
  }
  if (target.steps) {
    return CantRewind(session.name,
                      absl::StrCat("its head has ", num_steps,
                                   " ancestors that are no snapshots, fewer than ", *target.steps));
  }
  return CantRewind(session.name,
                    absl::StrCat("state ", target.state_id, " is no ancestor of its head"));
}

}  // namespace

absl::StatusOr<StateManifest> FindRewindTarget(StateStore& store, const Session& session,
                                               const RewindTarget& target) {
  AncestorWalk walk(&store, session);
  std::optional<StateManifest> newer;  // the last one passed that has its bytes
  uint32_t num_steps = 0;
  for (bool is_head = true;; is_head = false) {
    auto next = walk.Next();
    if (!next.ok()) return next.status();
    if (!next->has_value()) return IsNotThere(session, target, newer, num_steps);
    StateManifest& state = **next;
    const bool is_step = !is_head && !state.is_snapshot;
    num_steps += is_step ? 1 : 0;
    const bool is_it = target.position ? state.position <= *target.position && !state.bytes_dropped
                       : target.steps  ? is_step && num_steps == *target.steps
                                       : state.id == target.state_id;
    if (is_it && state.bytes_dropped) return IsGone(session, state, newer, std::move(walk));
    if (is_it) return std::move(state);
    if (!state.bytes_dropped) newer = std::move(state);
  }
}

}  // namespace vivarium::server
