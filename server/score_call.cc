#include "server/score_call.h"

#include <chrono>
#include <utility>

#include "server/admission.h"
#include "server/call_log.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/generate_plan.h"
#include "server/metrics.h"

namespace vivarium::server {

class ScoreCall::Sink final : public engine::StreamSink {
 public:
  Sink(std::shared_ptr<ScoreCall> call, int score_index)
      : call_(std::move(call)), score_index_(score_index) {}
  void OnStarted(const engine::StartedInfo& info) override {
    call_->parts_->metrics->ObserveQueueTime(info.queue_time);
  }
  void OnToken(engine::TokenEvent) override {}
  void OnSnapshot(std::unique_ptr<engine::StateSnapshot>) override {}
  void OnFinished(engine::FinishInfo info) override {
    call_->OnFinished(score_index_, std::move(info));
  }

 private:
  const std::shared_ptr<ScoreCall> call_;
  const int score_index_;
};

ScoreCall::ScoreCall(Parts* parts, grpc::CallbackServerContext* context,
                     v1::ScoreResponse* response)
    : parts_(parts), context_(context), response_(response), arrived_(absl::Now()) {}

grpc::ServerUnaryReactor* ScoreCall::Start(Parts* parts, grpc::CallbackServerContext* context,
                                           const v1::ScoreRequest& request,
                                           v1::ScoreResponse* response) {
  auto call = std::make_shared<ScoreCall>(parts, context, response);
  ScoreCall* const reactor = call.get();
  reactor->self_ = call;
  absl::Status status = parts->CheckServing();
  if (status.ok()) {
    auto params = ParseScore(request, LimitsOf(*parts));
    status = params.status();
    if (params.ok()) reactor->params_ = *std::move(params);
  }
  if (context->deadline() != std::chrono::system_clock::time_point::max()) {
    reactor->params_.deadline = absl::FromChrono(context->deadline());
  }
  if (status.ok()) status = parts->admission->Check(reactor->arrived_, reactor->params_.deadline);
  if (reactor->params_.state_ids.empty()) reactor->params_.state_ids.emplace_back();
  if (status.ok() && !parts->executor->TryRun([call] { call->Run(); })) {
    status = BusyError("calls that wait to begin", parts->executor->max_new());
  }
  if (!status.ok()) reactor->End(status);
  return reactor;
}

void ScoreCall::Run() {
  const int num_states = static_cast<int>(params_.state_ids.size());
  for (int i = 0; i < num_states; ++i) response_->add_scores();
  {
    absl::MutexLock lock(&mutex_);
    num_pending_ = num_states + 1;  // and this loop
  }
  absl::Status status;
  int score_index = 0;
  for (; score_index < num_states && status.ok(); ++score_index) {
    status = SubmitOne(params_.state_ids[score_index], score_index);
  }
  const int num_failed = status.ok() ? 0 : num_states - score_index + 1;
  if (!status.ok()) CancelStreams();
  CountDown(num_failed + 1, status);
}

absl::Status ScoreCall::SubmitOne(const std::string& state_id, int score_index) {
  engine::EngineRequest request;
  if (!state_id.empty()) {
    auto source = LoadSource(*parts_, state_id);
    if (!source.ok()) return source.status();
    request.source = std::move(source->snapshot);
    request.hot = std::move(source->hot);
  }
  auto prompt = EncodeInput(*parts_, params_.input, request.source.get());
  if (!prompt.ok()) return prompt.status();
  if (score_index == 0) {
    response_->mutable_token_ids()->Assign(prompt->begin(), prompt->end());
  }
  request.prompt = *std::move(prompt);
  request.score = true;
  request.deadline = params_.deadline;
  response_->mutable_scores(score_index)->set_state_id(state_id);
  auto id = parts_->engine->Submit(std::move(request),
                                   std::make_unique<Sink>(shared_from_this(), score_index));
  if (!id.ok()) return SubmitError(id.status());
  bool is_cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    streams_.push_back(*id);
    is_cancelled = is_cancelled_;
  }
  if (is_cancelled) parts_->engine->Cancel(*id);
  return absl::OkStatus();
}

// On the engine's thread; each stream writes its own entry of the response.
void ScoreCall::OnFinished(int score_index, engine::FinishInfo info) {
  absl::Status status = info.status;
  switch (info.reason) {
    case engine::FinishReason::kCancelled:
      status = absl::CancelledError("the call was cancelled");
      break;
    case engine::FinishReason::kDeadline:
      status = absl::DeadlineExceededError("the call's deadline passed");
      break;
    case engine::FinishReason::kDrained:
      status = DrainingError();
      break;
    case engine::FinishReason::kError:
      status = SubmitError(status);  // with the reason of a device's fault
      break;
    default:
      break;
  }
  v1::Scores* scores = response_->mutable_scores(score_index);
  double total = 0;
  for (const engine::TokenLogprob& score : info.scores) {
    scores->add_logprobs(score.logprob);
    total += score.logprob;
  }
  scores->set_total_logprob(total);
  scores->set_restored_tokens(info.restored_tokens);
  scores->set_computed_tokens(info.prefill_tokens);
  parts_->metrics->CountTokens(info.restored_tokens, info.prefill_tokens, 0);
  CountDown(1, std::move(status));
}

void ScoreCall::CountDown(int num_streams, absl::Status status) {
  absl::Status end;
  {
    absl::MutexLock lock(&mutex_);
    if (status_.ok()) status_ = std::move(status);
    num_pending_ -= num_streams;
    if (num_pending_ > 0) return;
    end = status_;
  }
  // Off the engine's thread: serialising the response is not its work.
  parts_->executor->Continue([call = shared_from_this(), end] { call->End(end); });
}

void ScoreCall::CancelStreams() {
  std::vector<engine::StreamId> streams;
  {
    absl::MutexLock lock(&mutex_);
    is_cancelled_ = true;
    streams = streams_;
  }
  for (const engine::StreamId id : streams) parts_->engine->Cancel(id);
}

void ScoreCall::End(const absl::Status& status) {
  ReportCall(*parts_, {"Score", status, absl::Now() - arrived_, ""});
  Finish(ToGrpcStatus(status, context_));
}

void ScoreCall::OnCancel() { CancelStreams(); }

void ScoreCall::OnDone() { self_ = nullptr; }

}  // namespace vivarium::server
