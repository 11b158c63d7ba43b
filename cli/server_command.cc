#include "cli/server_command.h"

#include <string>

#include "cli/output.h"

namespace vivarium::cli {

int ServerCommand::Run() {
  if (const int exit_code = Prepare(); exit_code != kExitOk) return exit_code;
  const auto client = Client::Connect(connection_);
  if (!client.ok()) return Fail(kExitCannotConnect, std::string(client.status().message()));
  return RunWith(**client);
}

}  // namespace vivarium::cli
