#include "server/generate_call.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/admission.h"
#include "server/call_log.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/metrics.h"
#include "server/prefix_reuse.h"
#include "server/save_admission.h"

namespace vivarium::server {

using engine::FinishReason;

// The engine's end of the call.
class GenerateCall::Sink final : public engine::StreamSink {
 public:
  explicit Sink(std::shared_ptr<GenerateCall> call) : call_(std::move(call)) {}
  void OnStarted(const engine::StartedInfo& info) override { call_->OnStarted(info); }
  void OnToken(engine::TokenEvent event) override { call_->OnToken(event); }
  bool AcceptsSnapshot(uint64_t /*position*/) override { return call_->AcceptsSnapshot(); }
  void OnSnapshot(std::unique_ptr<engine::StateSnapshot> snapshot) override {
    call_->OnSnapshot(std::move(snapshot));
  }
  bool AcceptsPromptState(uint64_t /*position*/) override { return call_->AcceptsPromptState(); }
  void OnPromptState(std::unique_ptr<engine::StateSnapshot> state) override {
    call_->OnPromptState(std::move(state));
  }
  void OnFinished(engine::FinishInfo info) override { call_->OnFinished(std::move(info)); }

 private:
  const std::shared_ptr<GenerateCall> call_;
};

GenerateCall::GenerateCall(Parts* parts, grpc::CallbackServerContext* context)
    : parts_(parts), context_(context), arrived_(absl::Now()) {
  parts_->num_open_streams.fetch_add(1);
}

GenerateCall::~GenerateCall() { parts_->num_open_streams.fetch_sub(1); }

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerateCall::Start(
    Parts* parts, grpc::CallbackServerContext* context, const v1::GenerateRequest& request) {
  auto call = std::make_shared<GenerateCall>(parts, context);
  GenerateCall* const reactor = call.get();
  reactor->self_ = call;
  absl::Status status = reactor->Admit(request);
  if (status.ok() && !parts->executor->TryRun([call] { call->Plan(); })) {
    status = BusyError("calls that wait to begin", parts->executor->max_new());
  }
  if (!status.ok()) {
    reactor->Report(status, {});
    reactor->End(status);
  }
  return reactor;
}

absl::Status GenerateCall::Admit(const v1::GenerateRequest& request) {
  if (absl::Status status = parts_->CheckServing(); !status.ok()) return status;
  const int32_t max_open = parts_->max_open_streams();
  if (parts_->num_open_streams > max_open) {
    return BusyError("open streams", static_cast<size_t>(max_open));
  }
  absl::StatusOr<GenerateParams> params = ParseGenerate(request, LimitsOf(*parts_));
  if (!params.ok()) return params.status();
  params_ = *std::move(params);
  const auto deadline = context_->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    params_.deadline = absl::FromChrono(deadline);
  }
  absl::Status status = parts_->admission->Enter(arrived_, params_.deadline);
  is_waiting_ = status.ok();
  return status;
}

void GenerateCall::StopWaiting(bool has_begun) {
  if (is_waiting_.exchange(false)) parts_->admission->Leave(absl::Now(), has_begun);
}

// ---- On the executor.

void GenerateCall::Plan() {
  bool is_cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    is_cancelled = is_cancelled_;
  }
  absl::Status status =
      is_cancelled ? absl::CancelledError("the call was cancelled") : PlanOrReplay();
  if (status.ok()) return;
  ReleaseHolds();
  Report(status, {});
  End(status);
}

absl::Status GenerateCall::PlanOrReplay() {
  StreamSaver::Origin origin;
  if (!params_.request_id.empty()) {
    auto hold = parts_->sessions->HoldRequest(DefaultTenant(), params_.request_id);
    if (!hold.ok()) return hold.status();
    auto record = parts_->store->GetRequest(DefaultTenant(), params_.request_id);
    if (record.ok() && record->expires > absl::Now()) {
      hold->Release();  // before the client hears of the end
      return Replay(*record);
    }
    if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
    origin.request = *std::move(hold);
  }
  absl::StatusOr<GeneratePlan> plan = PlanGenerate(*parts_, params_);
  if (!plan.ok()) return plan.status();
  if (absl::Status status = KeepQuota(&origin.quota); !status.ok()) return status;
  started_.set_source_state_id(plan->source_state_id);
  started_.set_reuse_explanation(plan->reuse_explanation);
  started_.set_numerics_changed(plan->numerics_changed);
  started_.set_session_created(plan->session_created);
  started_.set_state_tier(ToProto(plan->tier));
  ToProto(plan->request.sampling, params_.num_top_logprobs, started_.mutable_sampling());
  const uint64_t num_new = plan->request.prompt.size();
  prompt_end_position_ = plan->request.source ? plan->request.source->position + num_new
                                              : (num_new == 0 ? 0 : num_new - 1);
  parts_->metrics->CountReuse(plan->reuse);
  origin.source = std::move(plan->source);
  origin.reused_tokens = std::move(plan->reused_tokens);
  branch_tokens_ = std::move(plan->branch_tokens);
  origin.session = std::move(plan->session);
  saver_ = std::make_unique<StreamSaver>(parts_, &params_, std::move(origin));
  return Submit(*std::move(plan));
}

// Without quota for a first snapshot a stream that is to take some is refused; later it skips them.
absl::Status GenerateCall::KeepQuota(statestore::StateReservation* quota) {
  auto certain = AdmitSaves(*parts_, NumCertainStates(params_.save), params_.save.codec);
  if (!certain.ok()) return certain.status();
  auto first = AdmitSaves(*parts_, params_.save.every_tokens > 0 ? 1 : 0, params_.save.codec);
  if (!first.ok()) return first.status();
  *quota = *std::move(certain);
  absl::MutexLock lock(&mutex_);
  snapshot_quota_ = *std::move(first);
  return absl::OkStatus();
}

// Session and quota are free before the client hears of the end.
void GenerateCall::ReleaseHolds() {
  saver_ = nullptr;
  absl::MutexLock lock(&mutex_);
  snapshot_quota_.Release();
}

absl::Status GenerateCall::Submit(GeneratePlan plan) {
  auto id =
      parts_->engine->Submit(std::move(plan.request), std::make_unique<Sink>(shared_from_this()));
  if (!id.ok()) return SubmitError(id.status());
  bool is_cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    stream_id_ = *id;
    is_cancelled = is_cancelled_;
  }
  if (is_cancelled) parts_->engine->Cancel(*id);
  return absl::OkStatus();
}

absl::Status GenerateCall::Replay(const statestore::RequestRecord& record) {
  if (record.request_hash != params_.request_hash) {
    return WithReason(absl::InvalidArgumentError(absl::StrCat(
                          "request_id is ", params_.request_id,
                          ", which another request had; expected a new one, or the same request")),
                      "REQUEST_ID_REUSED", {{"field", "request_id"}});
  }
  auto messages = DecodeResult(record.result);
  if (!messages.ok()) return messages.status();
  // State and etag as they are now: the record has only the state's id.
  v1::Finished* finished = messages->back().mutable_finished();
  if (finished->has_state()) {
    auto manifest = parts_->store->GetManifest(DefaultTenant(), finished->state().id());
    if (manifest.ok()) ToProto(*manifest, finished->mutable_state());
  }
  if (!params_.session.empty()) {
    auto session = parts_->store->GetSession(DefaultTenant(), params_.session);
    if (session.ok()) finished->set_session_etag(session->etag);
  }
  Report(absl::OkStatus(), messages->back().finished().usage());
  for (v1::GenerateResponse& message : *messages) Emit(std::move(message));
  End(absl::OkStatus());
  return absl::OkStatus();
}

// One piece of work, then back into the queue: a stream that saves often shares with the others.
void GenerateCall::RunSaves() {
  std::optional<PendingSave> save;
  std::optional<engine::FinishInfo> info;
  {
    absl::MutexLock lock(&mutex_);
    if (!saves_.empty()) {
      save = std::move(saves_.front());
      saves_.pop_front();
    } else if (finish_info_) {
      info = std::move(finish_info_);
      finish_info_ = std::nullopt;
    } else {
      is_saving_ = false;
      return;
    }
  }
  if (info) return Complete(*std::move(info));  // is_saving_ stays: nothing comes after
  SaveOne(*std::move(save));
  parts_->executor->Continue([call = shared_from_this()] { call->RunSaves(); });
}

void GenerateCall::SaveOne(PendingSave save) {
  if (!save_failure_.ok()) return;
  auto manifest = saver_->Save(std::move(save.snapshot), save.is_prompt_end, std::move(save.quota));
  if (!manifest.ok()) {
    save_failure_ = manifest.status();
    return CancelStream();
  }
  {
    absl::MutexLock lock(&mutex_);  // before the client hears of it
    --num_snapshots_in_flight_;
  }
  v1::GenerateResponse message;
  ToProto(*manifest, message.mutable_saved()->mutable_state());
  Emit(std::move(message));
}

void GenerateCall::Complete(engine::FinishInfo info) {
  v1::Finished finished = MakeFinished(info);
  absl::Status status = save_failure_;
  const FinishReason reason = info.reason;
  parts_->metrics->CountTokens(info.restored_tokens, info.prefill_tokens, info.output_tokens);
  if (info.output_tokens > 1) {
    parts_->metrics->ObserveTokenTime(info.decode_time /
                                      static_cast<double>(info.output_tokens - 1));
  }
  if (status.ok() && reason == FinishReason::kError) {
    status = info.status;
    if (engine::IsDeviceFault(status)) {  // this is where to go on
      status = WithReason(std::move(status), "DEVICE_FAULT",
                          {{"last_state_id", saver_->last_state_id()}});
    }
  }
  if (status.ok()) {
    auto end = saver_->Finish(std::move(info), [&](const std::string& state_id) {
      v1::Finished recorded = finished;
      if (!state_id.empty()) recorded.mutable_state()->set_id(state_id);
      absl::MutexLock lock(&mutex_);
      return recorder_.Encode(recorded);
    });
    status = end.status();
    if (end.ok()) {
      if (end->state) ToProto(*end->state, finished.mutable_state());
      finished.set_session_etag(end->session_etag);
    }
  }
  ReleaseHolds();
  if (status.ok() && reason == FinishReason::kCancelled) {
    status = absl::CancelledError("the call was cancelled");
  } else if (status.ok() && reason == FinishReason::kDeadline) {
    status = absl::DeadlineExceededError("the call's deadline passed");
  }
  Report(status, finished.usage());
  if (status.ok()) {
    v1::GenerateResponse message;
    *message.mutable_finished() = std::move(finished);
    Emit(std::move(message));
  }
  End(status);
}

v1::Finished GenerateCall::MakeFinished(const engine::FinishInfo& info) const {
  v1::Finished finished;
  switch (info.reason) {
    case FinishReason::kStop:
      finished.set_reason(v1::STOP);
      break;
    case FinishReason::kLength:
      finished.set_reason(v1::LENGTH);
      break;
    case FinishReason::kDrained:
      finished.set_reason(v1::DRAINED);
      break;
    case FinishReason::kCancelled:
      finished.set_reason(v1::CANCELLED);
      break;
    case FinishReason::kDeadline:
      finished.set_reason(v1::DEADLINE);
      break;
    case FinishReason::kError:
      break;
  }
  v1::Usage* usage = finished.mutable_usage();
  usage->set_restored_tokens(info.restored_tokens);
  usage->set_prefill_tokens(info.prefill_tokens);
  usage->set_output_tokens(info.output_tokens);
  usage->set_skipped_snapshots(info.skipped_snapshots);
  usage->set_state_tier(started_.state_tier());
  *usage->mutable_prefill_time() = ToProto(info.prefill_time);
  *usage->mutable_decode_time() = ToProto(info.decode_time);
  if (!info.stop.empty()) finished.mutable_stop()->set_matched_string(info.stop);
  if (info.stop_token_id) finished.mutable_stop()->set_matched_token_id(*info.stop_token_id);
  return finished;
}

void GenerateCall::Report(const absl::Status& status, const v1::Usage& usage) {
  CallReport report{"Generate", status, absl::Now() - arrived_, ""};
  report.fields = absl::StrCat(
      params_.session.empty() ? "" : absl::StrCat(" session=", params_.session),
      " restored=", usage.restored_tokens(), " prefill=", usage.prefill_tokens(),
      " output=", usage.output_tokens(), " skipped_snapshots=", usage.skipped_snapshots());
  ReportCall(*parts_, report);
}

// ---- From the engine.

void GenerateCall::OnStarted(const engine::StartedInfo& info) {
  StopWaiting(/*has_begun=*/true);
  parts_->metrics->ObserveQueueTime(info.queue_time);
  v1::GenerateResponse message;
  *message.mutable_started() = started_;
  message.mutable_started()->set_restored_tokens(info.restored_tokens);
  message.mutable_started()->set_prefill_tokens(info.prefill_tokens);
  *message.mutable_started()->mutable_queue_time() = ToProto(info.queue_time);
  Emit(std::move(message));
}

void GenerateCall::OnToken(const engine::TokenEvent& event) {
  bool is_first = false;
  bool must_ring = false;
  {
    absl::MutexLock lock(&mutex_);
    is_first = !std::exchange(has_token_, true);
    if (!params_.request_id.empty()) recorder_.AddToken(event);
    if (!is_gone_) {
      outbox_.AddToken(event);
      must_ring = MustRing();
    }
  }
  if (is_first) parts_->metrics->ObserveFirstToken(absl::Now() - arrived_);
  if (must_ring) Ring();
}

bool GenerateCall::HasSnapshotQuota() {
  if (snapshot_quota_.kept().num_states > 0) return true;
  auto quota = parts_->store->Reserve(DefaultTenant(), 1, parts_->model.layout, params_.save.codec);
  if (!quota.ok()) return false;
  snapshot_quota_ = *std::move(quota);
  return true;
}

// One in flight: between the engine's question and the store's answer.
bool GenerateCall::AcceptsSnapshot() {
  {
    absl::MutexLock lock(&mutex_);
    if (num_snapshots_in_flight_ == 0 && HasSnapshotQuota()) {
      ++num_snapshots_in_flight_;
      return true;
    }
  }
  parts_->metrics->CountSkippedSnapshot();
  return false;
}

void GenerateCall::OnSnapshot(std::unique_ptr<engine::StateSnapshot> snapshot) {
  const bool is_prompt_end =
      params_.save.at_prompt_end && snapshot->position == prompt_end_position_;
  bool must_run = false;
  {
    absl::MutexLock lock(&mutex_);
    num_snapshots_in_flight_ += is_prompt_end ? 1 : 0;  // of these the engine does not ask
    saves_.push_back({std::move(snapshot), is_prompt_end, {}});
    if (!is_prompt_end) saves_.back().quota = std::move(snapshot_quota_);
    must_run = MustRunSaves();
  }
  if (must_run) parts_->executor->Continue([call = shared_from_this()] { call->RunSaves(); });
}

bool GenerateCall::AcceptsPromptState() {
  branch_hold_ = parts_->prefixes->BeginSave(DefaultTenant());
  return branch_hold_.has_value();
}

// Apart from the call, which neither waits for it nor hears how it ended.
void GenerateCall::OnPromptState(std::unique_ptr<engine::StateSnapshot> state) {
  parts_->executor->Continue([parts = parts_, state = std::move(state),
                              tokens = std::move(branch_tokens_),
                              hold = std::move(*branch_hold_)]() mutable {
    parts->prefixes->Save(DefaultTenant(), std::move(state), tokens, std::move(hold));
  });
}

void GenerateCall::OnFinished(engine::FinishInfo info) {
  bool must_run = false;
  bool must_ring = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!params_.request_id.empty()) recorder_.AddText(info.flushed_text);
    if (!is_gone_) {
      outbox_.AddText(info.flushed_text);
      must_ring = MustRing();
    }
    finish_info_ = std::move(info);
    must_run = MustRunSaves();
  }
  if (must_ring) Ring();
  if (must_run) parts_->executor->Continue([call = shared_from_this()] { call->RunSaves(); });
}

// ---- Writing.

void GenerateCall::Emit(v1::GenerateResponse message) {
  bool must_ring = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!params_.request_id.empty() && !message.has_finished()) recorder_.Add(message);
    if (is_gone_) return;
    outbox_.Add(std::move(message));
    must_ring = MustRing();
  }
  if (must_ring) Ring();
}

void GenerateCall::End(absl::Status status) {
  StopWaiting(/*has_begun=*/false);
  {
    absl::MutexLock lock(&mutex_);
    if (!end_) end_ = std::move(status);
    if (!MustRing()) return;
  }
  Ring();
}

bool GenerateCall::MustRing() {
  if (is_rung_ || is_writing_ || rpc_finished_) return false;
  is_rung_ = true;
  return true;
}

bool GenerateCall::MustRunSaves() { return !std::exchange(is_saving_, true); }

void GenerateCall::Ring() { parts_->pump->Ring(shared_from_this()); }

void GenerateCall::WriteMore() {
  std::optional<absl::Status> end;
  {
    absl::MutexLock lock(&mutex_);
    is_rung_ = false;
    if (is_writing_ || rpc_finished_) return;
    if (!outbox_.empty()) {
      current_ = outbox_.Take();
      is_writing_ = true;
    } else if (end_) {
      end = end_;
      rpc_finished_ = true;
    } else {
      return;
    }
  }
  if (end) {
    Finish(ToGrpcStatus(*end, context_));
  } else {
    StartWrite(&current_);
  }
}

void GenerateCall::OnWriteDone(bool ok) {
  const auto keep = shared_from_this();
  {
    absl::MutexLock lock(&mutex_);
    is_writing_ = false;
    if (!ok) {
      is_gone_ = true;
      outbox_.Clear();
    }
  }
  if (!ok) CancelStream();
  WriteMore();
}

// The client is gone, or its deadline passed. The RPC ends now; what is to be saved is saved.
void GenerateCall::OnCancel() {
  const auto keep = shared_from_this();
  {
    absl::MutexLock lock(&mutex_);
    is_gone_ = true;
    outbox_.Clear();
    if (!end_) end_ = absl::CancelledError("the call was cancelled");
  }
  CancelStream();
  WriteMore();
}

void GenerateCall::OnDone() { self_ = nullptr; }

void GenerateCall::CancelStream() {
  std::optional<engine::StreamId> id;
  {
    absl::MutexLock lock(&mutex_);
    is_cancelled_ = true;
    id = stream_id_;
  }
  if (id) parts_->engine->Cancel(*id);
}

}  // namespace vivarium::server
