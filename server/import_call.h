// ImportCall: a state from a file that comes in pieces. Every byte is checked before anything of it
// is stored.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>

#include "absl/status/status.h"
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

  void TakeMessage();
  absl::Status TakePart();
  absl::Status Store();
  absl::Status CheckSaved(const statestore::SavedState& saved) const;
  void End(const absl::Status& status);

  Parts* const parts_;
  std::atomic<int>* const num_transfers_;
  grpc::CallbackServerContext* const context_;
  v1::State* const response_;
  const absl::Time arrived_;
  statestore::StateImporter importer_;
  v1::ImportStateRequest message_;
  v1::ImportMetadata metadata_;
  bool has_metadata_ = false;
};

}  // namespace vivarium::server
