// Command: one leaf of the command tree, e.g. `vivarium states ls`.
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <vector>

namespace vivarium::cli {

// Holds its own flags: Declare binds them, Run reads them.
class Command {
 public:
  virtual ~Command() = default;
  // Adds the command and its flags below `parent` and returns what it added. Called once.
  virtual CLI::App* Declare(CLI::App* parent) = 0;
  // Does the work after a successful parse; the exit code (exit_code.h). Prints its own errors.
  virtual int Run() = 0;
};

using Commands = std::vector<std::unique_ptr<Command>>;

// One maker per file of the same name.
Commands MakeServeCommands();     // serve
Commands MakeHealthCommands();    // health
Commands MakeGenerateCommands();  // generate
Commands MakeChatCommands();      // chat
Commands MakeScoreCommands();     // score
Commands MakeBenchCommands();     // bench
Commands MakeStatesCommands();    // states ls|show|tree|rm|export|import|verify
Commands MakeSessionsCommands();  // sessions ls|show|create|history|rewind|rm
Commands MakeAdminCommands();     // admin stats|backup
Commands MakeStoreCommands();     // store verify|stats|compact|gc|backup|backups|restore
Commands MakeModelCommands();     // model inspect|quantize
Commands MakeTokenizeCommands();  // tokenize
Commands MakeLogitsCommands();    // logits
Commands MakeConfigCommands();    // config check
Commands MakeVersionCommands();   // version

}  // namespace vivarium::cli
