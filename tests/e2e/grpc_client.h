// A thin gRPC client for end-to-end tests: one call, everything that came back.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vivarium/v1/generation.grpc.pb.h"
#include "vivarium/v1/server.grpc.pb.h"
#include "vivarium/v1/sessions.grpc.pb.h"
#include "vivarium/v1/states.grpc.pb.h"

namespace vivarium {

// What one Generate call gave.
struct Generated {
  grpc::Status status;
  std::optional<v1::Started> started;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<uint32_t> logprob_bits;  // the bits of each token's log-probability
  std::vector<v1::State> saved;
  std::optional<v1::Finished> finished;
};

class GrpcClient {
 public:
  explicit GrpcClient(const std::string& address)
      : channel_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())),
        generation(v1::Generation::NewStub(channel_)),
        states(v1::States::NewStub(channel_)),
        sessions(v1::Sessions::NewStub(channel_)),
        admin(v1::Admin::NewStub(channel_)) {}

  Generated Generate(const v1::GenerateRequest& request);
  v1::Stats Stats();

 private:
  std::shared_ptr<grpc::Channel> channel_;

 public:
  const std::unique_ptr<v1::Generation::Stub> generation;
  const std::unique_ptr<v1::States::Stub> states;
  const std::unique_ptr<v1::Sessions::Stub> sessions;
  const std::unique_ptr<v1::Admin::Stub> admin;
};

}  // namespace vivarium
