// A whole server in this process, on a port of its own, and a client of it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "server/server.h"
#include "tests/support/test_environment.h"
#include "vivarium/v1/generation.grpc.pb.h"
#include "vivarium/v1/server.grpc.pb.h"
#include "vivarium/v1/sessions.grpc.pb.h"
#include "vivarium/v1/states.grpc.pb.h"

namespace vivarium::server {

inline std::string TinyMamba() { return test::RootDir() + "/tests/data/goldens/tiny-mamba"; }
inline std::string StoriesModel() { return test::RootDir() + "/models/vivarium-stories"; }

// Quiet, on ports of the system's choice, two threads, f32.
ServerOptions TestOptions(const std::string& model_dir, const std::string& store_dir);

struct StreamResult {
  grpc::Status status;
  v1::Started started;
  v1::Finished finished;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
};

class RunningClient {
 public:
  // Aborts the test's process when the server can't be started.
  explicit RunningClient(const ServerOptions& options);

  StreamResult Generate(const v1::GenerateRequest& request);
  v1::Stats Stats();

  std::unique_ptr<Server> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Generation::Stub> generation;
  std::unique_ptr<v1::States::Stub> states;
  std::unique_ptr<v1::Sessions::Stub> sessions;
  std::unique_ptr<v1::Models::Stub> models;
  std::unique_ptr<v1::Admin::Stub> admin;
};

}  // namespace vivarium::server
