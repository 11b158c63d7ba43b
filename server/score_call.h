// ScoreCall: log-probabilities of given tokens after many states: one engine stream per state,
// which the engine batches.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/runtime/engine.h"
#include "server/parts.h"
#include "server/request.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::server {

// Shared by gRPC (until OnDone), the executor and the sinks of its streams.
class ScoreCall final : public grpc::ServerUnaryReactor,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  // Never blocks. The reactor looks after itself; `response` is gRPC's.
  static grpc::ServerUnaryReactor* Start(Parts* parts, grpc::CallbackServerContext* context,
                                         const v1::ScoreRequest& request,
                                         v1::ScoreResponse* response);

  ScoreCall(Parts* parts, grpc::CallbackServerContext* context, v1::ScoreResponse* response);

  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override;

 private:
  class Sink;

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status SubmitOne(const std::string& state_id, int score_index);
  void OnFinished(int score_index, engine::FinishInfo info) ABSL_LOCKS_EXCLUDED(mutex_);
  // One of the expected streams has ended, or could not begin.
  void CountDown(int num_streams, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  void CancelStreams() ABSL_LOCKS_EXCLUDED(mutex_);
  void End(const absl::Status& status);

  Parts* const parts_;
  grpc::CallbackServerContext* const context_;
  v1::ScoreResponse* const response_;
  const absl::Time arrived_;
  std::shared_ptr<ScoreCall> self_;  // gRPC's share
  ScoreParams params_;               // state_ids has one "" for scores from nothing

  absl::Mutex mutex_;
  int num_pending_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // the first error
  std::vector<engine::StreamId> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::server
