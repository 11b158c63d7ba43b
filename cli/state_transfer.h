// `vivarium states export|import`: states as verified files.
#pragma once

#include <memory>

#include "cli/command.h"

namespace vivarium::cli {

std::unique_ptr<Command> MakeStatesExportCommand();
std::unique_ptr<Command> MakeStatesImportCommand();

}  // namespace vivarium::cli
