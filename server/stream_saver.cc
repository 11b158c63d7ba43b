#include "server/stream_saver.h"

#include <utility>

#include "server/source_state.h"
#include "statestore/snapshot_thinning.h"

namespace vivarium::server {

using engine::FinishReason;
using statestore::Commit;
using statestore::StateManifest;

StreamSaver::StreamSaver(const Parts* parts, const GenerateParams* params, Origin origin)
    : parts_(parts),
      params_(params),
      origin_(std::move(origin)),
      last_id_(origin_.source.state_id) {
  SourceLineage& source = origin_.source;
  // What a fork shares with the session that it comes from is that session's to thin.
  if (source.session != params_->session) return;
  snapshots_ = std::move(source.snapshots);
  if (source.is_snapshot) snapshots_.push_back({source.state_id, source.position});
}

StateManifest StreamSaver::NextManifest(engine::StateSnapshot* snapshot) const {
  StateManifest manifest;
  manifest.id = parts_->ids->NextStateId();
  manifest.tenant = DefaultTenant();
  manifest.parent_id = last_id_;
  manifest.identity = std::move(snapshot->identity);
  manifest.layout = std::move(snapshot->layout);
  manifest.position = snapshot->position;
  manifest.pending_token = snapshot->pending_token;
  manifest.sampling = std::move(snapshot->sampling);
  manifest.recent_tokens = std::move(snapshot->recent_tokens);
  manifest.text_tail = std::move(snapshot->text_tail);
  manifest.transcript = std::move(snapshot->transcript);
  if (last_id_.empty()) {
    manifest.transcript.insert(manifest.transcript.begin(), origin_.reused_tokens.begin(),
                               origin_.reused_tokens.end());
  }
  manifest.session = params_->session;
  manifest.labels = params_->labels;
  manifest.codec = params_->save.codec;
  manifest.created = absl::Now();
  manifest.expires = manifest.created + params_->ttl;
  // What storing the chain's own states loses does not come back into the running stream.
  manifest.inherited_loss = origin_.source.loss;
  manifest.snapshots = snapshots_;
  return manifest;
}

absl::StatusOr<StateManifest> StreamSaver::Save(std::unique_ptr<engine::StateSnapshot> snapshot,
                                                bool is_prompt_end,
                                                statestore::StateReservation quota) {
  Commit commit;
  commit.tenant = DefaultTenant();
  commit.reservation = is_prompt_end ? &origin_.quota : &quota;
  commit.states.push_back({NextManifest(snapshot.get()), &snapshot->slot});
  std::vector<statestore::SnapshotRef> left;
  if (!is_prompt_end) {
    ForgetGoneSnapshots();
    left = statestore::PlanSnapshot(snapshots_, params_->save.keep_snapshots, &commit);
  }
  absl::Status status = parts_->store->Apply(commit);
  if (!status.ok()) return status;
  if (!is_prompt_end) snapshots_ = std::move(left);
  last_id_ = commit.states[0].manifest.id;
  if (is_prompt_end) prompt_end_id_ = last_id_;
  last_saved_ = AsStored(std::move(commit.states[0].manifest));
  return *last_saved_;
}

void StreamSaver::ForgetGoneSnapshots() {
  if (std::exchange(has_looked_for_gone_, true)) return;
  std::erase_if(snapshots_, [this](const statestore::SnapshotRef& snapshot) {
    auto manifest = parts_->store->GetManifest(DefaultTenant(), snapshot.id);
    return manifest.ok() ? !manifest->is_snapshot : !absl::IsUnavailable(manifest.status());
  });
}

// The manifest as read back, for what only the store knows, such as the stored size. It is durable
// already: that it can't be read now is no error.
StateManifest StreamSaver::AsStored(StateManifest manifest) const {
  auto stored = parts_->store->GetManifest(DefaultTenant(), manifest.id);
  return stored.ok() ? *std::move(stored) : std::move(manifest);
}

absl::Status StreamSaver::KeepLastSaved() {
  if (!last_saved_->is_snapshot) return absl::OkStatus();
  last_saved_->is_snapshot = false;
  snapshots_.pop_back();
  return parts_->store->UpdateState(DefaultTenant(), last_saved_->id, {}).status();
}

bool StreamSaver::WantsEndState(FinishReason reason) const {
  return params_->save.at_end ||
         (reason == FinishReason::kDrained && params_->save.saves_anything());
}

std::string StreamSaver::NewHead(FinishReason reason, const std::string& end_state_id) const {
  switch (params_->save.head) {
    case SavePlan::Head::kStands:
      return "";
    case SavePlan::Head::kToEnd:
      return end_state_id;
    case SavePlan::Head::kToPromptEnd:
      return reason == FinishReason::kDrained ? end_state_id : prompt_end_id_;
  }
  return "";
}

absl::StatusOr<StreamSaver::End> StreamSaver::Finish(
    engine::FinishInfo info, const std::function<std::string(const std::string&)>& make_result) {
  Commit commit;
  commit.tenant = DefaultTenant();
  commit.reservation = &origin_.quota;
  std::string end_state_id;
  if (info.state != nullptr && WantsEndState(info.reason)) {
    // Nothing came after the last snapshot: that one is the end.
    const bool is_saved = last_saved_ && last_saved_->position == info.state->position &&
                          info.state->transcript.empty();
    if (is_saved) {
      if (absl::Status status = KeepLastSaved(); !status.ok()) return status;
      end_state_id = last_saved_->id;
    } else {
      commit.states.push_back({NextManifest(info.state.get()), &info.state->slot});
      end_state_id = commit.states[0].manifest.id;
    }
  }
  const std::string head = NewHead(info.reason, end_state_id);
  if (!head.empty()) {
    commit.head_move = Commit::HeadMove{params_->session, head, origin_.session->etag()};
  }
  const bool ever_ran = info.state != nullptr;
  if (!params_->request_id.empty() && ever_ran) {
    commit.request = statestore::RequestRecord{
        params_->request_id, params_->request_hash, make_result(end_state_id),
        absl::Now() + absl::Seconds(parts_->options.request_ttl_seconds)};
  }
  if (!commit.states.empty() || commit.head_move || commit.request) {
    absl::Status status = parts_->store->Apply(commit);
    if (!status.ok()) return status;
  }
  KeepHot(*parts_, info.hot_id, end_state_id, params_->save.codec);
  End end;
  if (!commit.states.empty()) {
    end.state = AsStored(std::move(commit.states[0].manifest));
  } else if (!end_state_id.empty()) {
    end.state = last_saved_;
  }
  if (origin_.session) {
    auto session = parts_->store->GetSession(DefaultTenant(), params_->session);
    if (session.ok()) end.session_etag = session->etag;
  }
  return end;
}

}  // namespace vivarium::server
