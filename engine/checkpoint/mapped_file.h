// MappedFile: a regular file, mapped read-only.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace vivarium::engine {

// Immutable and thread-safe. The bytes live as long as the MappedFile. The file must not be
// truncated while it is mapped (the kernel would raise SIGBUS); replacing it by rename is safe.
class MappedFile {
 public:
  // NOT_FOUND when there is no such file; INVALID_ARGUMENT when it is no regular file;
  // PERMISSION_DENIED or INTERNAL with the system's reason otherwise.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

  // Lets go of the whole pages of `bytes`, part of a mapped file: they are read again when needed.
  static void Release(std::span<const std::byte> bytes);

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes);

  const std::string path_;
  const std::span<const std::byte> bytes_;
};

}  // namespace vivarium::engine
