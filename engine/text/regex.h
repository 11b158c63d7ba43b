// Patterns of tokenizer files, matched by PCRE2.
//
// The files' patterns are written for Oniguruma in Ruby's syntax. Where PCRE2 reads the same
// characters differently, the pattern is rewritten to keep its meaning (white space) or refused by
// name (class set operations, \w, \h, \b and their kin), never matched approximately.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace vivarium::engine {

// Bounds of one match attempt (see pcre2api, pcre2_set_match_limit and its neighbours).
inline constexpr uint32_t kRegexMatchLimit = 10'000'000;
inline constexpr uint32_t kRegexHeapLimitKib = 64 << 10;
inline constexpr size_t kRegexJitStackBytes = size_t{1} << 20;

// `pattern` in PCRE2's syntax. Unimplemented: it uses something of the list above.
absl::StatusOr<std::string> TranslatePattern(std::string_view pattern);

// A compiled pattern. Immutable; const methods are thread-safe, each thread with its own Matcher.
class Regex {
 public:
  // What one thread needs while matching; made once per call of Encode.
  class Matcher {
   public:
    explicit Matcher(const Regex& regex);
    ~Matcher();
    Matcher(Matcher&&) noexcept;
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;

   private:
    friend class Regex;
    struct Memory;
    std::unique_ptr<Memory> memory_;
  };

  struct Match {
    size_t begin = 0;
    size_t end = 0;
  };

  // InvalidArgument: not a pattern (PCRE2's message and offset); Unimplemented as above.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // The leftmost match in `text` (valid UTF-8) that begins at `start` or later. ResourceExhausted:
  // a bound was passed.
  absl::StatusOr<std::optional<Match>> Find(std::string_view text, size_t start,
                                            Matcher* matcher) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);

  std::unique_ptr<Code> code_;
};

}  // namespace vivarium::engine
