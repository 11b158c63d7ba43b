// ImportCall: a state from a file that comes in pieces. Every byte is checked before anything of it
// is stored.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/parts.h"
#include "statestore/state_export.h"
#include "vivarium/v1/states.pb.h"

namespace vivarium::server {

inline constexpr size_t kMaxImportPieceBytes = size_t{2} << 20;

// Owns itself; at any time one thing goes on: a read, or a piece of work on the executor.
class ImportCall final : public grpc::ServerReadReactor<v1::ImportStateRequest> {
 public:
  // `num_transfers` counts those that run, see kMaxTransfers.
  static grpc::ServerReadReactor<v1::ImportStateRequest>* Start(
      Parts* parts, std::atomic<int>* num_transfers, grpc::CallbackServerContext* context,
      v1::State* response);

  void OnReadDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  ImportCall(Parts* parts, std::atomic<int>* num_transfers, grpc::CallbackServerContext* context,
             v1::State* response);
  ~ImportCall() override;

  void TakeMessage() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status TakePart() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Store() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CheckSaved(const statestore::SavedState& saved) const;
  void End(const absl::Status& status);

  Parts* const parts_;
  std::atomic<int>* const num_transfers_;
  grpc::CallbackServerContext* const context_;
  v1::State* const response_;
  const absl::Time arrived_;
  v1::ImportStateRequest message_;
  absl::Mutex mutex_;  // never waited for: each piece of work may run on another thread
  statestore::StateImporter importer_ ABSL_GUARDED_BY(mutex_);
  v1::ImportMetadata metadata_ ABSL_GUARDED_BY(mutex_);
  bool has_metadata_ ABSL_GUARDED_BY(mutex_) = false;
  statestore::StateReservation quota_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::server
