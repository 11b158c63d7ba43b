#include "server/generation_service.h"

#include "server/convert.h"
#include "server/generate_call.h"
#include "server/generate_plan.h"
#include "server/score_call.h"
#include "server/unary.h"

namespace vivarium::server {
namespace {

absl::Status TokenizeInput(const Parts& parts, const v1::TokenizeRequest& request,
                           v1::TokenizeResponse* response) {
  auto input = ParseTokenize(request, LimitsOf(parts));
  if (!input.ok()) return input.status();
  if (parts.tokenizer == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no tokenizer.json: there is no text"),
        "NO_TOKENIZER");
  }
  auto ids = EncodeInput(parts, *input, /*source=*/nullptr);
  if (!ids.ok()) return ids.status();
  response->mutable_token_ids()->Assign(ids->begin(), ids->end());
  response->set_text(parts.tokenizer->Decode(*ids, /*skip_special=*/false));
  return absl::OkStatus();
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return GenerateCall::Start(parts_, context, *request);
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const v1::ScoreRequest* request,
                                                   v1::ScoreResponse* response) {
  return ScoreCall::Start(parts_, context, *request, response);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  return RunUnary(parts_, "Tokenize", context,
                  [=, this] { return TokenizeInput(*parts_, *request, response); });
}

}  // namespace vivarium::server
