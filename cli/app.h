// The whole program behind main(): declares the command tree, parses, runs one command.
#pragma once

namespace vivarium::cli {

// Returns the process's exit code (exit_code.h).
int RunVivarium(int argc, const char* const* argv);

}  // namespace vivarium::cli
