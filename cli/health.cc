// `vivarium health`.
#include <grpcpp/grpcpp.h>

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace vivarium::cli {
namespace {

namespace health = grpc::health::v1;

constexpr char kFooter[] =
    "Asks the standard gRPC health service. Prints 'serving' and exits with 0 when new work is\n"
    "taken; 1 when the server answers that it takes none, as while it drains; 3 when nobody "
    "answers.\n"
    "With --wait it tries again until the server serves, and the exit code is that of the last "
    "try.\n"
    "\n"
    "Examples:\n"
    "  vivarium health\n"
    "  vivarium serve & vivarium health --wait 60 && vivarium chat";

constexpr double kDefaultTimeoutSeconds = 5;
constexpr double kMaxWaitSeconds = 86'400;
constexpr absl::Duration kBetweenTries = absl::Milliseconds(100);
constexpr int kReconnectMs = 200;

class HealthCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("health", "Whether a server takes work; for scripts");
    app->add_option("--wait", wait_seconds_, "Try again that long until it does")
        ->type_name("SECONDS")
        ->check(CLI::Range(0.0, kMaxWaitSeconds))
        ->capture_default_str();
    connection_.timeout_seconds = kDefaultTimeoutSeconds;
    connection_.Declare(app);
    app->get_option("--timeout")
        ->description("For one answer")
        ->check(CLI::Range(0.001, kMaxWaitSeconds))
        ->capture_default_str();
    app->footer(kFooter);
    return app;
  }

  int Run() override {
    grpc::ChannelArguments arguments;
    // A server that just starts is found soon after it listens.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMs);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
    const auto stub = health::Health::NewStub(grpc::CreateCustomChannel(
        connection_.server, grpc::InsecureChannelCredentials(), arguments));
    const absl::Time give_up = absl::Now() + absl::Seconds(wait_seconds_);
    while (true) {
      const Answer answer = Ask(*stub, give_up);
      if (answer.exit_code == kExitOk) {
        PrintLine("serving");
        return kExitOk;
      }
      if (!answer.may_change || absl::Now() + kBetweenTries >= give_up) {
        return Fail(answer.exit_code, answer.sentence);
      }
      absl::SleepFor(kBetweenTries);
    }
  }

 private:
  struct Answer {
    int exit_code = kExitOk;
    std::string sentence;
    bool may_change = true;  // a later try may find something else
  };

  // One try, which lasts --timeout at most and, with --wait, not much longer than until `give_up`.
  Answer Ask(health::Health::Stub& stub, absl::Time give_up) const {
    const absl::Time now = absl::Now();
    absl::Time deadline = now + absl::Seconds(connection_.timeout_seconds);
    if (wait_seconds_ > 0) deadline = std::min(deadline, std::max(give_up, now + kBetweenTries));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    context.set_wait_for_ready(wait_seconds_ > 0);
    health::HealthCheckResponse response;
    const grpc::Status status = stub.Check(&context, health::HealthCheckRequest(), &response);
    if (status.ok()) {
      if (response.status() == health::HealthCheckResponse::SERVING) return {};
      return {kExitServerError,
              absl::StrCat("the server at ", connection_.server, " takes no work: ",
                           health::HealthCheckResponse::ServingStatus_Name(response.status()))};
    }
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      return {kExitCannotConnect, absl::StrCat("no server answers at ", connection_.server)};
    }
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      return {kExitCannotConnect,
              absl::StrFormat("no answer from %s within %.3g s", connection_.server,
                              absl::ToDoubleSeconds(deadline - now))};
    }
    return {kExitServerError, ErrorSentence(status), /*may_change=*/false};
  }

  ConnectionFlags connection_;
  double wait_seconds_ = 0;
};

}  // namespace

Commands MakeHealthCommands() {
  Commands commands;
  commands.push_back(std::make_unique<HealthCommand>());
  return commands;
}

}  // namespace vivarium::cli
