#include "cli/paths.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace vivarium::cli {
namespace {

namespace fs = std::filesystem;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string BundledModelDir() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path candidates[] = {
      program.parent_path().parent_path() / "share/vivarium/models" / kBundledModelName,
      fs::path(VIVARIUM_MODELS_DIR) / kBundledModelName,
  };
  for (const fs::path& candidate : candidates) {
    if (fs::is_regular_file(candidate / "config.json", error)) return candidate.string();
  }
  return "";
}

std::string DefaultStoreDir() {
  fs::path data = Environment("XDG_DATA_HOME");
  if (!data.is_absolute()) {
    const std::string home = Environment("HOME");
    if (home.empty()) return "";
    data = fs::path(home) / ".local/share";
  }
  return (data / "vivarium/store").string();
}

}  // namespace vivarium::cli
