#include "tests/support/temp_dir.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace vivarium::test {
namespace {

[[noreturn]] void Die(const std::string& what, const std::string& path) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), path.c_str());
  std::abort();
}

std::string DefaultBase() {
  const char* base = std::getenv("TMPDIR");
  return base != nullptr && *base != '\0' ? base : "/tmp";
}

}  // namespace

TempDir::TempDir(const std::string& base) : path_(base + "/vivarium-test-" + std::string(6, 'X')) {
  if (mkdtemp(path_.data()) == nullptr) Die("cannot make a temporary directory", path_);
}

TempDir::TempDir() : TempDir(DefaultBase()) {}

TempDir TempDir::InMemory() {
  std::error_code ignored;
  return TempDir(std::filesystem::is_directory("/dev/shm", ignored) ? "/dev/shm" : DefaultBase());
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Die("cannot open", path);
  std::ostringstream content;
  content << in.rdbuf();
  return std::move(content).str();
}

void WriteFile(const std::string& path, std::string_view content) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.flush();
  if (!out) Die("cannot write", path);
}

}  // namespace vivarium::test
