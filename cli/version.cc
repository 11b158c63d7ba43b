// `vivarium version`.
#include <grpcpp/grpcpp.h>

#include <string>

#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "kernels/backend.h"

namespace vivarium::cli {
namespace {

class VersionCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("version",
                                           "Print the versions of the program and its "
                                           "parts");
    json_.Declare(app, "them");
    return app;
  }

  int Run() override {
    std::string error;
    kernels::BackendOptions options;
    options.num_threads = 1;
    const auto backend = kernels::Backend::Create("cpu", options, &error);
    const std::string isa = backend == nullptr ? "none" : std::string(backend->isa());
    if (json_.json) {
      PrintJson({{"version", VIVARIUM_VERSION},
                 {"cpu_isa", isa},
                 {"grpc", grpc::Version()},
                 {"compiler", __VERSION__}});
    } else {
      PrintLine("vivarium " VIVARIUM_VERSION);
      PrintLine("CPU kernels: " + isa + "; gRPC " + grpc::Version() + "; compiler " __VERSION__);
    }
    return kExitOk;
  }

 private:
  JsonFlag json_;
};

}  // namespace

Commands MakeVersionCommands() {
  Commands commands;
  commands.push_back(std::make_unique<VersionCommand>());
  return commands;
}

}  // namespace vivarium::cli
