// Where the program finds the bundled model and keeps its store when nothing is said.
#pragma once

#include <string>

namespace vivarium::cli {

inline constexpr char kBundledModelName[] = "vivarium-stories";

// The bundled model's directory: beside an installed program (../share/vivarium/models), else in
// the source tree that it was built from. "" when neither is there.
std::string BundledModelDir();

// ${XDG_DATA_HOME:-~/.local/share}/vivarium/store (XDG Base Directory Specification: a relative
// XDG_DATA_HOME is ignored). "" without a home directory.
std::string DefaultStoreDir();

}  // namespace vivarium::cli
