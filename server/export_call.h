// ExportCall: a state as a file, piece by piece, as fast as the client reads.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "server/parts.h"
#include "statestore/state_export.h"
#include "vivarium/v1/states.pb.h"

namespace vivarium::server {

// Owns itself; at any time one thing goes on: the load, or one write.
class ExportCall final : public grpc::ServerWriteReactor<v1::ExportStateResponse> {
 public:
  // `num_transfers` counts those that run, see kMaxTransfers.
  static grpc::ServerWriteReactor<v1::ExportStateResponse>* Start(
      Parts* parts, std::atomic<int>* num_transfers, grpc::CallbackServerContext* context,
      const v1::ExportStateRequest& request);

  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  ExportCall(Parts* parts, std::atomic<int>* num_transfers, grpc::CallbackServerContext* context,
             std::string state_id);
  ~ExportCall() override;

  void Load();
  void WriteNext();
  void End(const absl::Status& status);

  Parts* const parts_;
  std::atomic<int>* const num_transfers_;
  grpc::CallbackServerContext* const context_;
  const std::string state_id_;
  const absl::Time arrived_;
  std::optional<statestore::StateExporter> exporter_;
  v1::ExportStateResponse piece_;
};

}  // namespace vivarium::server
