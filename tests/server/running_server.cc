#include "tests/server/running_server.h"

#include <cstdio>
#include <cstdlib>

namespace vivarium::server {

ServerOptions TestOptions(const std::string& model_dir, const std::string& store_dir) {
  ServerOptions options;
  options.model_dir = model_dir;
  options.store_dir = store_dir;
  options.device = test::TestDevice();
  options.deterministic = true;
  options.listen = "127.0.0.1:0";
  options.metrics_listen = "";
  options.weights = "f32";
  options.threads = 2;
  options.max_slots = 4;
  options.log_level = "off";
  return options;
}

RunningClient::RunningClient(const ServerOptions& options) {
  auto started = Server::Start(options);
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", started.status().ToString().c_str());
    std::abort();
  }
  server = *std::move(started);
  channel = grpc::CreateChannel(server->address(), grpc::InsecureChannelCredentials());
  generation = v1::Generation::NewStub(channel);
  states = v1::States::NewStub(channel);
  sessions = v1::Sessions::NewStub(channel);
  models = v1::Models::NewStub(channel);
  admin = v1::Admin::NewStub(channel);
}

StreamResult RunningClient::Generate(const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  StreamResult result;
  const auto reader = generation->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    if (message.has_started()) result.started = message.started();
    if (message.has_finished()) result.finished = message.finished();
    if (!message.has_delta()) continue;
    result.text += message.delta().text();
    const auto& ids = message.delta().token_ids();
    result.token_ids.insert(result.token_ids.end(), ids.begin(), ids.end());
    for (const v1::Logprobs& logprobs : message.delta().logprobs()) {
      result.logprobs.push_back(logprobs.logprob());
    }
  }
  result.status = reader->Finish();
  return result;
}

v1::Stats RunningClient::Stats() {
  grpc::ClientContext context;
  v1::Stats stats;
  const grpc::Status status = admin->GetStats(&context, {}, &stats);
  if (!status.ok()) std::abort();
  return stats;
}

}  // namespace vivarium::server
