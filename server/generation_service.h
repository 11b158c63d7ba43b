// The Generation service: Generate (generate_call.h), Score (score_call.h), Tokenize.
#pragma once

#include "server/parts.h"
#include "vivarium/v1/generation.grpc.pb.h"

namespace vivarium::server {

class GenerationService final : public v1::Generation::CallbackService {
 public:
  // `parts` must outlive every call.
  explicit GenerationService(Parts* parts) : parts_(parts) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;

 private:
  Parts* const parts_;
};

}  // namespace vivarium::server
