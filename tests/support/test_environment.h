// What a test finds around it: data, the programs beside it, and the device it is to run on. In the
// source tree, and in a bundle that has been carried to another machine.
//
//   VIVARIUM_TEST_ROOT    the folder that has tests/data and models/ (default: the one above the
//                         program's, if it has them, else the source tree)
//   VIVARIUM_TEST_DEVICE  "cpu" (the default) or "cuda:N"
//   VIVARIUM_TEST_SERVER_FLAGS  further flags of every `vivarium serve`, separated by spaces
#pragma once

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

namespace vivarium::test {

inline std::string EnvironmentOr(const char* name, const std::string& otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

// The folder of the running program; other programs of the build lie beside it.
inline std::filesystem::path ProgramDir() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

inline std::string RootDir() {
  const std::filesystem::path above = ProgramDir().parent_path();
  return EnvironmentOr("VIVARIUM_TEST_ROOT", std::filesystem::exists(above / "tests" / "data")
                                                 ? above.string()
                                                 : VIVARIUM_SOURCE_DIR);
}

inline std::string TestDevice() { return EnvironmentOr("VIVARIUM_TEST_DEVICE", "cpu"); }
inline bool TestsRunOnCpu() { return TestDevice() == "cpu"; }

// The paths that a test goes through by name: the CPU's instruction sets, or the device's one.
inline std::vector<std::string> TestIsas() {
  if (!TestsRunOnCpu()) return {"cuda"};
  return {"portable", "avx2", "avx512"};
}

inline std::vector<std::string> TestServerFlags() {
  std::vector<std::string> flags;
  if (!TestsRunOnCpu()) flags = {"--device", TestDevice(), "--deterministic"};
  std::istringstream words(EnvironmentOr("VIVARIUM_TEST_SERVER_FLAGS", ""));
  for (std::string word; words >> word;) flags.push_back(word);
  return flags;
}

}  // namespace vivarium::test
