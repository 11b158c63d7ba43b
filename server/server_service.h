// The Models and Admin services: what is served, and the server's own business.
#pragma once

#include "server/parts.h"
#include "vivarium/v1/server.grpc.pb.h"

namespace vivarium::server {

inline constexpr absl::Duration kMaxDrain = absl::Hours(24);

class ModelsService final : public v1::Models::CallbackService {
 public:
  // `parts` must outlive every call.
  explicit ModelsService(Parts* parts) : parts_(parts) {}
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;

 private:
  Parts* const parts_;
};

class AdminService final : public v1::Admin::CallbackService {
 public:
  explicit AdminService(Parts* parts) : parts_(parts) {}
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* Backup(grpc::CallbackServerContext* context,
                                   const v1::BackupRequest* request,
                                   v1::BackupResponse* response) override;
  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context,
                                     const v1::GetStatsRequest* request,
                                     v1::Stats* response) override;

 private:
  Parts* const parts_;
};

}  // namespace vivarium::server
