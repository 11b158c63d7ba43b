#include "tests/e2e/grpc_client.h"

#include <gtest/gtest.h>

#include <bit>

namespace vivarium {

Generated GrpcClient::Generate(const v1::GenerateRequest& request) {
  Generated result;
  grpc::ClientContext context;
  const auto reader = generation->Generate(&context, request);
  for (v1::GenerateResponse response; reader->Read(&response);) {
    EXPECT_FALSE(result.finished) << "an event after finished";
    switch (response.event_case()) {
      case v1::GenerateResponse::kStarted:
        EXPECT_FALSE(result.started) << "started twice";
        result.started = response.started();
        break;
      case v1::GenerateResponse::kDelta:
        result.text += response.delta().text();
        for (const int32_t id : response.delta().token_ids()) result.token_ids.push_back(id);
        for (const v1::Logprobs& logprobs : response.delta().logprobs()) {
          result.logprob_bits.push_back(std::bit_cast<uint32_t>(logprobs.logprob()));
        }
        break;
      case v1::GenerateResponse::kSaved:
        result.saved.push_back(response.saved().state());
        break;
      case v1::GenerateResponse::kFinished:
        result.finished = response.finished();
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        ADD_FAILURE() << "an empty event";
    }
  }
  result.status = reader->Finish();
  return result;
}

v1::Stats GrpcClient::Stats() {
  v1::Stats stats;
  grpc::ClientContext context;
  const grpc::Status status = admin->GetStats(&context, {}, &stats);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return stats;
}

}  // namespace vivarium
