// `vivarium config check`.
#include <string>

#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/serve_flags.h"

namespace vivarium::cli {
namespace {

constexpr char kFooter[] =
    "A config file is TOML; its keys are the flags of 'vivarium serve' without the dashes:\n"
    "  listen = \"127.0.0.1:50051\"\n"
    "  max-slots = 16\n"
    "  insecure = false\n"
    "Problems name the line, the setting, its value and what is expected; the exit code is then 2.";

class ConfigCheckCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("check", "Check a config file of 'vivarium serve'");
    app->add_option("FILE", file_, "The config file")->required();
    app->footer(kFooter);
    return app;
  }

  int Run() override {
    // An app of its own, on which no flag was given: the file alone is looked at.
    CLI::App serve;
    ServeFlags flags;
    flags.Declare(&serve);
    flags.config_file = file_;
    const auto problems = flags.Resolve(&serve);
    for (const std::string& problem : problems) Fail(kExitUsage, problem);
    if (!problems.empty()) return kExitUsage;
    PrintLine(file_ + ": ok");
    return kExitOk;
  }

 private:
  std::string file_;
};

}  // namespace

Commands MakeConfigCommands() {
  Commands commands;
  commands.push_back(std::make_unique<ConfigCheckCommand>());
  return commands;
}

}  // namespace vivarium::cli
