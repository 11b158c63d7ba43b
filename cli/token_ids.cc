#include "cli/token_ids.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace vivarium::cli {
namespace {

constexpr std::string_view kSeparators = ", \t\r\n";
constexpr size_t kShownChars = 40;

absl::Status NoTokenId(std::string_view word, size_t index) {
  return absl::InvalidArgumentError(absl::StrCat("token ids: number ", index, " is '",
                                                 std::string(word.substr(0, kShownChars)),
                                                 "', expected an integer from 0 to 2147483647"));
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSeparators);
  if (begin == std::string_view::npos) return std::vector<int32_t>();
  text = text.substr(begin, text.find_last_not_of(kSeparators) + 1 - begin);
  if (text.front() == '[') {
    if (text.back() != ']') {
      return absl::InvalidArgumentError("token ids: the list begins with '[' but has no ']'");
    }
    text = text.substr(1, text.size() - 2);
  }
  std::vector<int32_t> ids;
  while (true) {
    const size_t word_begin = text.find_first_not_of(kSeparators);
    if (word_begin == std::string_view::npos) return ids;
    text.remove_prefix(word_begin);
    const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
    int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0) {
      return NoTokenId(word, ids.size() + 1);
    }
    if (ids.size() == kMaxTokenListIds) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ids: more than ", kMaxTokenListIds, " of them"));
    }
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const std::string& list_or_file) {
  if (list_or_file.empty() || list_or_file.front() != '@') return ParseTokenIds(list_or_file);
  const auto text = ReadInputFile(list_or_file.substr(1));
  if (!text.ok()) return text.status();
  return ParseTokenIds(*text);
}

absl::StatusOr<std::string> ReadInputFile(const std::string& path) {
  struct Close {
    void operator()(std::FILE* file) const {
      if (file != stdin) std::fclose(file);
    }
  };
  const std::unique_ptr<std::FILE, Close> file(path == "-" ? stdin
                                                           : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  }
  std::string text;
  char chunk[1 << 16];
  size_t size;
  while ((size = std::fread(chunk, 1, sizeof(chunk), file.get())) > 0) {
    text.append(chunk, size);
    if (text.size() > kMaxInputFileBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is larger than ", kMaxInputFileBytes, " bytes"));
    }
  }
  if (std::ferror(file.get()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  return text;
}

}  // namespace vivarium::cli
