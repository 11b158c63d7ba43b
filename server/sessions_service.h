// The Sessions service.
#pragma once

#include "server/parts.h"
#include "vivarium/v1/sessions.grpc.pb.h"

namespace vivarium::server {

// Of one GetHistory.
inline constexpr size_t kMaxHistoryStates = 1000;
inline constexpr size_t kMaxHistoryBytes = size_t{3} << 20;

class SessionsService final : public v1::Sessions::CallbackService {
 public:
  // `parts` must outlive every call.
  explicit SessionsService(Parts* parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const v1::CreateSessionRequest* request,
                                          v1::Session* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::Session* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* GetHistory(grpc::CallbackServerContext* context,
                                       const v1::GetHistoryRequest* request,
                                       v1::GetHistoryResponse* response) override;
  grpc::ServerUnaryReactor* RewindSession(grpc::CallbackServerContext* context,
                                          const v1::RewindSessionRequest* request,
                                          v1::Session* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest* request,
                                          google::protobuf::Empty* response) override;

 private:
  Parts* const parts_;
};

}  // namespace vivarium::server
