#include "cli/app.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>  // defines what App.hpp only declares
#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/complete.h"
#include "cli/exit_code.h"
#include "cli/help_formatter.h"
#include "cli/output.h"

namespace vivarium::cli {
namespace {

constexpr char kDescription[] =
    "Vivarium, a home for live Mambas.\n"
    "Serves state space language models whose states are durable values: any thread of text\n"
    "resumes by id, in constant time, with no recomputation.\n";

constexpr char kFooter[] =
    "Begin here:\n"
    "  vivarium serve                         serve the bundled model on 127.0.0.1:50051\n"
    "  vivarium chat --session me             talk to it; /help inside\n"
    "  vivarium generate 'Once upon a time'   one text, its state saved\n"
    "  vivarium generate --state st_... ''    go on from any saved state\n"
    "  vivarium states tree                   what is saved, and what grew out of what\n"
    "\n"
    "'vivarium COMMAND --help' explains each. VIVARIUM_SERVER=HOST:PORT stands in for --server.\n"
    "\n"
    "Exit codes: 0 done; 1 the server answered with an error; 2 wrong flags or config file;\n"
    "3 cannot connect; 4 trouble with a file, model, store or port on this machine;\n"
    "5 the device failed while serving; 6 bench compare found something worse; 130 interrupted.";

// A command group without work of its own, such as `states`.
struct Group {
  const char* name;
  const char* description;
  Commands (*make)();
};

struct Leaf {
  CLI::App* app;
  std::unique_ptr<Command> command;
};

std::vector<Leaf> DeclareCommands(CLI::App* root) {
  std::vector<Leaf> leaves;
  const auto declare = [&leaves](CLI::App* parent, const char* heading, Commands commands) {
    for (auto& command : commands) {
      CLI::App* app = command->Declare(parent);
      if (heading != nullptr) app->group(heading);
      leaves.push_back({app, std::move(command)});
    }
  };
  const auto declare_group = [&](const char* heading, const Group& group) {
    CLI::App* parent = root->add_subcommand(group.name, group.description);
    parent->require_subcommand(1)->group(heading);
    declare(parent, nullptr, group.make());
  };
  declare(root, "Serving", MakeServeCommands());
  declare_group("Serving", {"config", "Check a server's config file", &MakeConfigCommands});
  declare(root, "Talking to a server", MakeGenerateCommands());
  declare(root, "Talking to a server", MakeChatCommands());
  declare(root, "Talking to a server", MakeScoreCommands());
  declare_group(
      "Talking to a server",
      {"states", "Saved states: list, show, delete, export, import, verify", &MakeStatesCommands});
  declare_group("Talking to a server",
                {"sessions", "Sessions, the names that point at states", &MakeSessionsCommands});
  declare_group(
      "Talking to a server",
      {"admin", "A running server: its figures, backups of its store", &MakeAdminCommands});
  declare(root, "Talking to a server", MakeBenchCommands());
  declare(root, "Talking to a server", MakeHealthCommands());
  declare_group("Without a server", {"store",
                                     "A store's directory, while no server has it open: verify, "
                                     "shrink, back up, restore",
                                     &MakeStoreCommands});
  declare_group("Without a server", {"model", "Look into a model directory", &MakeModelCommands});
  declare(root, "Without a server", MakeTokenizeCommands());
  declare(root, "Without a server", MakeLogitsCommands());
  declare(root, "Without a server", MakeVersionCommands());
  return leaves;
}

int FailUsage(const CLI::App& root, const std::string& problem) {
  // The innermost command that was named, so that the hint leads to the right help.
  const CLI::App* app = &root;
  std::string path = "vivarium";
  while (!app->get_subcommands().empty()) {
    app = app->get_subcommands().front();
    path += " " + app->get_name();
  }
  return Fail(kExitUsage, problem + "; see '" + path + " --help'");
}

}  // namespace

int RunVivarium(int argc, const char* const* argv) {
  CLI::App root(kDescription, "vivarium");
  root.formatter(std::make_shared<HelpFormatter>());  // CLI11 keeps it, and subcommands share it
  root.require_subcommand(1);
  root.set_help_flag("-h,--help", "Print this help");
  const std::vector<Leaf> leaves = DeclareCommands(&root);
  root.footer(kFooter);  // after the subcommands, which would take it over
  if (argc <= 1) {
    PrintNow(root.help());
    return kExitUsage;
  }
  if (argv[1] == std::string_view(kCompleteCommand)) {
    PrintCompletions(root, {argv + 2, argv + argc});
    return kExitOk;
  }
  try {
    root.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    PrintNow(root.help());  // of the innermost command that was named
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    return FailUsage(root, error.what());
  }
  const auto leaf = std::find_if(leaves.begin(), leaves.end(),
                                 [](const Leaf& candidate) { return candidate.app->parsed(); });
  // require_subcommand(1) on every level has made sure that one was parsed.
  return leaf == leaves.end() ? kExitUsage : leaf->command->Run();
}

}  // namespace vivarium::cli
