// The States service. Export and Import stream: export_call.h, import_call.h.
#pragma once

#include <atomic>

#include "server/parts.h"
#include "vivarium/v1/states.grpc.pb.h"

namespace vivarium::server {

// Exports and imports that run at once at most: each holds a whole state.
inline constexpr int kMaxTransfers = 16;

class StatesService final : public v1::States::CallbackService {
 public:
  // `parts` must outlive every call.
  explicit StatesService(Parts* parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest* request,
                                     v1::State* response) override;
  grpc::ServerUnaryReactor* ListStates(grpc::CallbackServerContext* context,
                                       const v1::ListStatesRequest* request,
                                       v1::ListStatesResponse* response) override;
  grpc::ServerUnaryReactor* DeleteState(grpc::CallbackServerContext* context,
                                        const v1::DeleteStateRequest* request,
                                        google::protobuf::Empty* response) override;
  grpc::ServerWriteReactor<v1::ExportStateResponse>* ExportState(
      grpc::CallbackServerContext* context, const v1::ExportStateRequest* request) override;
  grpc::ServerReadReactor<v1::ImportStateRequest>* ImportState(grpc::CallbackServerContext* context,
                                                               v1::State* response) override;
  grpc::ServerUnaryReactor* UpdateState(grpc::CallbackServerContext* context,
                                        const v1::UpdateStateRequest* request,
                                        v1::State* response) override;
  grpc::ServerUnaryReactor* VerifyState(grpc::CallbackServerContext* context,
                                        const v1::VerifyStateRequest* request,
                                        v1::VerifyStateResponse* response) override;

 private:
  Parts* const parts_;
  std::atomic<int> num_transfers_{0};
};

}  // namespace vivarium::server
