// GenerateCall: one Generate call, from request to last message. README.md, "Life of a Generate
// call", tells the story; three kinds of threads meet here:
//   executor threads   plan the stream (load, encode, submit), store its states, finish it
//   the engine's       hands over tokens and snapshots, through Sink; only touches buffers
//   gRPC's, the pump's write what the outbox holds, one message at a time
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/runtime/engine.h"
#include "server/generate_plan.h"
#include "server/outbox.h"
#include "server/parts.h"
#include "server/replay.h"
#include "server/request.h"
#include "server/stream_saver.h"
#include "server/write_pump.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::server {

// Shared by gRPC (until OnDone), the engine's sink and the executor's pieces of work: whichever
// ends last destroys it.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public Writable,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Checks the request and begins; never blocks. The reactor looks after itself.
  static grpc::ServerWriteReactor<v1::GenerateResponse>* Start(Parts* parts,
                                                               grpc::CallbackServerContext* context,
                                                               const v1::GenerateRequest& request);

  GenerateCall(Parts* parts, grpc::CallbackServerContext* context);
  ~GenerateCall() override;

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override;
  void WriteMore() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Sink;
  struct PendingSave {
    std::unique_ptr<engine::StateSnapshot> snapshot;
    bool is_prompt_end;
    statestore::StateReservation quota;  // of an every-N one
  };

  absl::Status Admit(const v1::GenerateRequest& request);

  // On the executor.
  void Plan() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status PlanOrReplay();
  absl::Status Replay(const statestore::RequestRecord& record);
  absl::Status KeepQuota(statestore::StateReservation* quota) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReleaseHolds() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Submit(GeneratePlan plan);
  void RunSaves() ABSL_LOCKS_EXCLUDED(mutex_);
  void SaveOne(PendingSave save) ABSL_LOCKS_EXCLUDED(mutex_);
  void Complete(engine::FinishInfo info) ABSL_LOCKS_EXCLUDED(mutex_);

  // From the engine.
  void OnStarted(const engine::StartedInfo& info) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnToken(const engine::TokenEvent& event) ABSL_LOCKS_EXCLUDED(mutex_);
  bool AcceptsSnapshot() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasSnapshotQuota() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnSnapshot(std::unique_ptr<engine::StateSnapshot> snapshot) ABSL_LOCKS_EXCLUDED(mutex_);
  bool AcceptsPromptState();
  void OnPromptState(std::unique_ptr<engine::StateSnapshot> state);
  void OnFinished(engine::FinishInfo info) ABSL_LOCKS_EXCLUDED(mutex_);

  // From anywhere.
  void Emit(v1::GenerateResponse message) ABSL_LOCKS_EXCLUDED(mutex_);
  void End(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  void CancelStream() ABSL_LOCKS_EXCLUDED(mutex_);
  void Ring() ABSL_LOCKS_EXCLUDED(mutex_);
  void StopWaiting(bool has_begun);
  bool MustRing() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MustRunSaves() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::Finished MakeFinished(const engine::FinishInfo& info) const;
  void Report(const absl::Status& status, const v1::Usage& usage);

  Parts* const parts_;
  grpc::CallbackServerContext* const context_;  // not after OnDone
  const absl::Time arrived_;
  std::atomic<bool> is_waiting_{false};  // counted by Parts::admission
  std::shared_ptr<GenerateCall> self_;   // gRPC's share

  // Written before the engine knows the stream, read after.
  GenerateParams params_;
  v1::Started started_;  // what the plan knows of it
  uint64_t prompt_end_position_ = 0;

  // The engine's, once it has the stream: for the state at a branch of prompts.
  std::vector<int32_t> branch_tokens_;
  std::optional<HoldSet::Hold> branch_hold_;

  // Used by one piece of the executor's work at a time.
  std::unique_ptr<StreamSaver> saver_;
  absl::Status save_failure_;

  absl::Mutex mutex_;
  Outbox outbox_ ABSL_GUARDED_BY(mutex_);
  ResultRecorder recorder_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse current_;  // being written
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_rung_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_gone_ ABSL_GUARDED_BY(mutex_) = false;             // nobody reads any more
  bool rpc_finished_ ABSL_GUARDED_BY(mutex_) = false;        // Finish() was called
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // after the outbox
  bool has_token_ ABSL_GUARDED_BY(mutex_) = false;

  std::optional<engine::StreamId> stream_id_ ABSL_GUARDED_BY(mutex_);
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  // Of the engine's snapshots, those on their way to the store: the prompt's end and one at most.
  int num_snapshots_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  statestore::StateReservation snapshot_quota_ ABSL_GUARDED_BY(mutex_);  // for the next one
  std::deque<PendingSave> saves_ ABSL_GUARDED_BY(mutex_);  // of these, those that wait
  std::optional<engine::FinishInfo> finish_info_ ABSL_GUARDED_BY(mutex_);
  bool is_saving_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace vivarium::server
