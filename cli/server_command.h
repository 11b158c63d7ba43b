// ServerCommand: a command that talks to a server.
#pragma once

#include "cli/client.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/flags.h"

namespace vivarium::cli {

// Declare of a derived class declares connection_ as well.
class ServerCommand : public Command {
 public:
  int Run() final;

 protected:
  // What needs no server, such as a look at the flags; kExitOk = go on, and connect.
  virtual int Prepare() { return kExitOk; }
  // The work, with a connection that stands; the exit code.
  virtual int RunWith(Client& client) = 0;

  ConnectionFlags connection_;
};

}  // namespace vivarium::cli
