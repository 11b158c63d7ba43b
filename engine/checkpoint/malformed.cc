#include "engine/checkpoint/malformed.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace vivarium::engine {

std::string Quoted(std::string_view name) {
  constexpr size_t kMaxBytes = 160;
  const bool is_cut = name.size() > kMaxBytes;
  const absl::string_view head(name.data(), is_cut ? kMaxBytes : name.size());
  return absl::StrCat("'", absl::CHexEscape(head), is_cut ? "...'" : "'");
}

absl::Status MalformedFile(const std::string& file, const std::string& what, uint64_t offset,
                           const std::string& expected, const std::string& found) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what, " at byte ", offset,
                                                 ": expected ", expected, ", found ", found));
}

absl::Status MalformedField(const std::string& file, const std::string& what,
                            const std::string& expected, const std::string& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": ", what, ": expected ", expected, ", found ", found));
}

}  // namespace vivarium::engine
