// Tokenizer::Load: the files of a model's directory.
#include <cerrno>
#include <cstdio>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/tokenizer.h"

namespace vivarium::engine {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) {
    const int error = errno;
    const std::string message = absl::StrCat(path, ": ", std::generic_category().message(error));
    return error == ENOENT || error == ENOTDIR ? absl::NotFoundError(message)
                                               : absl::FailedPreconditionError(message);
  }
  std::string content;
  char buffer[size_t{64} << 10];
  while (content.size() <= max_bytes) {
    const size_t num_bytes = std::fread(buffer, 1, sizeof(buffer), file.get());
    content.append(buffer, num_bytes);
    if (num_bytes < sizeof(buffer)) break;
  }
  if (std::ferror(file.get()) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": cannot be read"));
  }
  if (content.size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": more than ", max_bytes, " bytes, the most that are read"));
  }
  return content;
}

// Empty if there is no such file.
absl::StatusOr<std::string> ReadOptionalFile(const std::string& path, size_t max_bytes) {
  absl::StatusOr<std::string> content = ReadFile(path, max_bytes);
  if (absl::IsNotFound(content.status())) return std::string();
  return content;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& dir) {
  absl::StatusOr<std::string> json = ReadFile(dir + "/tokenizer.json", kMaxTokenizerFileBytes);
  if (!json.ok()) return json.status();
  absl::StatusOr<std::string> config =
      ReadOptionalFile(dir + "/tokenizer_config.json", kMaxTokenizerConfigBytes);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::string> chat_template =
      ReadOptionalFile(dir + "/chat_template.jinja", kMaxTokenizerConfigBytes);
  if (!chat_template.ok()) return chat_template.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = FromJson(*json, *config, *chat_template);
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(dir, "/", tokenizer.status().message()));
  }
  return tokenizer;
}

}  // namespace vivarium::engine
