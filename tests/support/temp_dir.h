// TempDir: a directory that lives as long as the object.
#pragma once

#include <string>
#include <string_view>

namespace vivarium::test {

class TempDir {
 public:
  TempDir();  // under TMPDIR or /tmp, mode 0700; aborts when it can't be made
  // Under /dev/shm where there is one: for tests that write thousands of small files.
  static TempDir InMemory();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  explicit TempDir(const std::string& base);

  std::string path_;
};

// Whole files; abort with a message on any error.
std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, std::string_view content);

}  // namespace vivarium::test
