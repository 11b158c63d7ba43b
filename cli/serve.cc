// `vivarium serve`.
#include <csignal>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/serve_flags.h"
#include "server/server.h"

namespace vivarium::cli {
namespace {

constexpr char kFooter[] =
    "Prints 'listening on HOST:PORT' when calls are answered. SIGTERM or Ctrl-C: no new work;\n"
    "running streams finish, or after --drain-seconds are saved and told their state's id; exit "
    "0.\n"
    "When the device fails, every stream ends and the exit code is 5: start again, every saved "
    "state\n"
    "is there.\n"
    "\n"
    "Settings come from flags, then --config FILE (TOML, the same names), then defaults.\n"
    "\n"
    "Examples:\n"
    "  vivarium serve\n"
    "  vivarium serve --model ~/models/mamba-130m-hf --store /var/lib/vivarium --max-slots 32\n"
    "  vivarium serve --config vivarium.toml --listen 127.0.0.1:0";

class ServeCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    app_ = parent->add_subcommand("serve", "Serve a model");
    flags_.Declare(app_);
    app_->footer(kFooter);
    return app_;
  }

  int Run() override {
    const auto problems = flags_.Resolve(app_);
    for (const std::string& problem : problems) Fail(kExitUsage, problem);
    if (!problems.empty()) return kExitUsage;
    // Before any thread starts, so that every thread leaves the signals to the watcher below.
    BlockInterrupts();
    std::signal(SIGPIPE, SIG_IGN);
    const auto server = server::Server::Start(flags_.options);
    if (!server.ok()) return FailLocally(server.status());
    PrintLine("listening on " + (*server)->address());
    const InterruptWatcher watcher(
        [this, &server] {
          (*server)->Drain(absl::Now() + absl::Seconds(flags_.options.drain_seconds));
        },
        kExitInterrupted);
    (*server)->WaitUntilDrained();
    const absl::Status fault = (*server)->fault();
    return fault.ok() ? kExitOk : Fail(kExitDeviceFault, std::string(fault.message()));
  }

 private:
  CLI::App* app_ = nullptr;
  ServeFlags flags_;
};

}  // namespace

Commands MakeServeCommands() {
  Commands commands;
  commands.push_back(std::make_unique<ServeCommand>());
  return commands;
}

}  // namespace vivarium::cli
