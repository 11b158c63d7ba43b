#include "cli/client.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/status_code.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace vivarium::cli {
namespace {

constexpr double kConnectSeconds = 5;

std::chrono::system_clock::time_point After(double seconds) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(
             std::chrono::duration<double>(seconds));
}

struct ErrorDetails {
  std::string reason;              // "" = the error did not come from a Vivarium server
  double retry_after_seconds = 0;  // 0 = not said
};

ErrorDetails ReadDetails(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status rich;
  if (!rich.ParseFromString(status.error_details())) return details;
  for (const auto& any : rich.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) details.reason = info.reason();
    if (any.UnpackTo(&retry)) {
      details.retry_after_seconds =
          static_cast<double>(
              google::protobuf::util::TimeUtil::DurationToMilliseconds(retry.retry_delay())) /
          1000;
    }
  }
  return details;
}

// READY, or the last state seen before the deadline; at once when the connection is refused.
bool WaitUntilConnected(grpc::Channel& channel, double seconds) {
  const auto deadline = After(seconds);
  while (true) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) return false;
    if (!channel.WaitForStateChange(state, deadline)) return false;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ConnectionFlags& flags) {
  BlockInterrupts();
  grpc::ChannelArguments arguments;
  // The bound on an answer's size is the server's business (long histories exceed 4 MiB).
  arguments.SetMaxReceiveMessageSize(-1);
  const auto channel =
      grpc::CreateCustomChannel(flags.server, grpc::InsecureChannelCredentials(), arguments);
  const double seconds = flags.timeout_seconds > 0
                             ? std::min(flags.timeout_seconds, kConnectSeconds)
                             : kConnectSeconds;
  InterruptWatcher watcher([] { _exit(kExitInterrupted); }, kExitInterrupted);
  if (!WaitUntilConnected(*channel, seconds)) {
    return absl::UnavailableError(absl::StrCat("no server answers at ", flags.server,
                                               ": start one with `vivarium serve`, or name "
                                               "another with --server HOST:PORT"));
  }
  return std::unique_ptr<Client>(new Client(flags.server, flags.timeout_seconds, channel));
}

Client::Client(std::string address, double timeout_seconds,
               const std::shared_ptr<grpc::Channel>& channel)
    : address_(std::move(address)),
      timeout_seconds_(timeout_seconds),
      generation_(v1::Generation::NewStub(channel)),
      states_(v1::States::NewStub(channel)),
      sessions_(v1::Sessions::NewStub(channel)),
      models_(v1::Models::NewStub(channel)),
      admin_(v1::Admin::NewStub(channel)) {}

Client::Call::Call(double timeout_seconds)
    : watcher_([this] { context_.TryCancel(); }, kExitInterrupted) {
  if (timeout_seconds > 0) context_.set_deadline(After(timeout_seconds));
}

int Client::Fail(const grpc::Status& status) const {
  if (status.error_code() == grpc::StatusCode::CANCELLED) {
    return cli::Fail(kExitInterrupted, "interrupted");
  }
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && ReadDetails(status).reason.empty()) {
    return cli::Fail(kExitCannotConnect, absl::StrCat("lost the connection to ", address_, ": ",
                                                      status.error_message()));
  }
  return cli::Fail(kExitServerError, ErrorSentence(status));
}

std::string ErrorSentence(const grpc::Status& status) {
  const ErrorDetails details = ReadDetails(status);
  std::string sentence = absl::StrCat(status.error_message(), " (", CodeName(status.error_code()));
  if (!details.reason.empty()) absl::StrAppend(&sentence, ", ", details.reason);
  sentence += ")";
  if (details.retry_after_seconds > 0) {
    absl::StrAppendFormat(&sentence, "; try again in %.3g s", details.retry_after_seconds);
  }
  return sentence;
}

}  // namespace vivarium::cli
