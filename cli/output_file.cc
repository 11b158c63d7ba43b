#include "cli/output_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace vivarium::cli {
namespace {

absl::Status WriteError(const std::string& path) {
  return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", std::strerror(errno)));
}

std::string PartPath(const std::string& path) { return path + ".part"; }

}  // namespace

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path) {
  std::FILE* file = std::fopen(PartPath(path).c_str(), "wb");
  if (file == nullptr) return WriteError(path);
  return std::unique_ptr<OutputFile>(new OutputFile(path, file));
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  unlink(PartPath(path_).c_str());
}

absl::Status OutputFile::Write(std::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) return WriteError(path_);
  return absl::OkStatus();
}

absl::Status OutputFile::Finish() {
  const std::string part = PartPath(path_);
  const bool is_written = std::fflush(file_) == 0 && fsync(fileno(file_)) == 0;
  const bool is_closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!is_written || !is_closed || std::rename(part.c_str(), path_.c_str()) != 0) {
    absl::Status error = WriteError(path_);
    unlink(part.c_str());
    return error;
  }
  return absl::OkStatus();
}

}  // namespace vivarium::cli
