#include "server/grpc_port.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/generation_service.h"
#include "server/server_options.h"
#include "server/server_service.h"
#include "server/sessions_service.h"
#include "server/states_service.h"

namespace vivarium::server {
namespace {

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

class RunningPort final : public GrpcPort {
 public:
  explicit RunningPort(Parts* parts)
      : generation_(parts), states_(parts), sessions_(parts), models_(parts), admin_(parts) {}
  ~RunningPort() override { Close(absl::ZeroDuration()); }

  absl::Status Start(const std::string& listen, absl::Duration max_age) {
    HostPort parsed;
    absl::Status status = ParseHostPort("listen", listen, &parsed);
    if (!status.ok()) return status;
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // A client that vanished without a word is noticed within these two.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
    // One that pings more often than this, without a call of its own, is cut off.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               Milliseconds(kMinPingInterval));
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(kMaxIdle));
    if (max_age > absl::ZeroDuration()) {  // calls in flight go on; new ones reconnect
      builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, Milliseconds(max_age));
    }
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsPerConnection);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
    builder.SetResourceQuota(grpc::ResourceQuota("vivarium").Resize(kMaxTransportBytes));
    builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
    for (grpc::Service* service : std::initializer_list<grpc::Service*>{
             &generation_, &states_, &sessions_, &models_, &admin_}) {
      builder.RegisterService(service);
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(absl::StrCat("--listen ", listen, " can't be bound"));
    }
    const bool is_v6 = parsed.host.find(':') != std::string::npos;
    address_ =
        is_v6 ? absl::StrCat("[", parsed.host, "]:", port) : absl::StrCat(parsed.host, ":", port);
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void StopServing() override {
    if (auto* const health = server_->GetHealthCheckService()) health->SetServingStatus(false);
  }

  void SetSaving(bool can_save) override {
    if (auto* const health = server_->GetHealthCheckService()) {
      health->SetServingStatus(kSavingHealth, can_save);
    }
  }

  void Close(absl::Duration grace) override {
    if (server_ == nullptr) return;
    server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
    server_->Wait();
  }

 private:
  GenerationService generation_;
  StatesService states_;
  SessionsService sessions_;
  ModelsService models_;
  AdminService admin_;
  std::unique_ptr<grpc::Server> server_;  // goes before the services
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcPort>> GrpcPort::Open(Parts* parts, const std::string& address) {
  auto port = std::make_unique<RunningPort>(parts);
  absl::Status status =
      port->Start(address, absl::Seconds(parts->options.max_connection_age_seconds));
  if (!status.ok()) return status;
  return port;
}

}  // namespace vivarium::server
