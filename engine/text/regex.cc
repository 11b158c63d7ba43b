#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/regex.h"

#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace vivarium::engine {
namespace {

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) {
    return absl::StrCat("PCRE2 error ", code);
  }
  return reinterpret_cast<const char*>(buffer);
}

// One pass over a pattern, copying what both engines read alike.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (pos_ < pattern_.size()) {
      const absl::Status status = pattern_[pos_] == '\\' ? Escape()
                                  : in_class_            ? InClass()
                                                         : Plain();
      if (!status.ok()) return status;
    }
    return out_;
  }

 private:
  std::string_view Ahead(size_t num_bytes) const { return pattern_.substr(pos_, num_bytes); }

  void Copy(size_t num_bytes) {
    out_ += Ahead(num_bytes);
    pos_ += num_bytes;
  }

  void Replace(size_t num_bytes, std::string_view replacement) {
    out_ += replacement;
    pos_ += num_bytes;
  }

  absl::Status Refuse(size_t num_bytes) const {
    return absl::UnimplementedError(absl::StrCat("pattern '", std::string(pattern_), "': '",
                                                 std::string(Ahead(num_bytes)), "' at ", pos_,
                                                 " is not supported"));
  }

  absl::Status Escape() {
    if (pos_ + 1 == pattern_.size()) return Refuse(1);
    switch (const char escape = pattern_[pos_ + 1]) {
      case 's':  // PCRE2's also has U+180E, which Unicode no longer counts as white space
        Replace(2, "\\p{White_Space}");
        return absl::OkStatus();
      case 'S':
        Replace(2, "\\P{White_Space}");
        return absl::OkStatus();
      case 'v':  // one character there, a class here
        Replace(2, "\\x0B");
        return absl::OkStatus();
      case 'p':
      case 'P':
      case 'x': {
        const size_t close = Ahead(3).ends_with('{') ? pattern_.find('}', pos_) : pos_ + 1;
        if (close == std::string_view::npos) return Refuse(3);
        Copy(close + 1 - pos_);
        return absl::OkStatus();
      }
      case 'u': {
        const std::string_view digits = pattern_.substr(pos_ + 2, 4);
        if (digits.size() < 4 || digits.find_first_not_of(kHexDigits) != digits.npos) {
          return Refuse(6);
        }
        Replace(6, absl::StrCat("\\x{", std::string(digits), "}"));
        return absl::OkStatus();
      }
      default:
        // The rest of the letters and digits means other things there and here (\w, \b, \h, \R,
        // \1 ...): rare, and refused rather than studied.
        if (IsAlphanumeric(escape) && kSameEscapes.find(escape) == std::string_view::npos) {
          return Refuse(2);
        }
        Copy(2);
        return absl::OkStatus();
    }
  }

  absl::Status InClass() {
    // A bracket opens a nested class there; && intersects.
    if (Ahead(1) == "[" || Ahead(2) == "&&") return Refuse(2);
    if (Ahead(1) == "]") in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Plain() {
    if (Ahead(1) == "[") {
      const size_t num_bytes = Ahead(2) == "[^" ? 2 : 1;
      // A class that begins with a bracket: allowed, but its end is found differently.
      if (pattern_.substr(pos_ + num_bytes, 1) == "]") return Refuse(num_bytes + 1);
      in_class_ = true;
      Copy(num_bytes);
      return absl::OkStatus();
    }
    if (Ahead(2) == "(*") return Refuse(2);  // a verb here
    if (Ahead(2) == "}+") return Refuse(2);  // once more there, possessive here
    if (Ahead(2) == "{,") return Refuse(2);  // from zero there, literal here
    if (Ahead(2) == "(?") return Group();
    Copy(1);
    return absl::OkStatus();
  }

  // Groups and lookarounds are the same; of the options only a scoped (?i: ...), or (?i) over the
  // whole pattern.
  absl::Status Group() {
    for (const std::string_view same : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"}) {
      if (Ahead(same.size()) != same) continue;
      Copy(same.size());
      return absl::OkStatus();
    }
    if (pos_ != 0 || Ahead(4) != "(?i)") return Refuse(4);
    Copy(4);
    return absl::OkStatus();
  }

  static bool IsAlphanumeric(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  }

  static constexpr std::string_view kHexDigits = "0123456789abcdefABCDEF";
  static constexpr std::string_view kSameEscapes = "dDnrtfae";

  std::string_view pattern_;
  size_t pos_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern) {
  return Translator(pattern).Run();
}

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

struct Regex::Matcher::Memory {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* jit_stack = nullptr;
  ~Memory() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(jit_stack);
  }
};

Regex::Matcher::Matcher(const Regex& regex) : memory_(std::make_unique<Memory>()) {
  memory_->data = pcre2_match_data_create_from_pattern(regex.code_->code, nullptr);
  memory_->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(memory_->context, kRegexMatchLimit);
  pcre2_set_heap_limit(memory_->context, kRegexHeapLimitKib);
  memory_->jit_stack = pcre2_jit_stack_create(32 << 10, kRegexJitStackBytes, nullptr);
  pcre2_jit_stack_assign(memory_->context, nullptr, memory_->jit_stack);
}
Regex::Matcher::~Matcher() = default;
Regex::Matcher::Matcher(Matcher&&) noexcept = default;

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  absl::StatusOr<std::string> translated = TranslatePattern(pattern);
  if (!translated.ok()) return translated.status();
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  auto code = std::make_unique<Code>();
  // MULTILINE: ^ and $ are at lines in Ruby's syntax.
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &error, &offset, context);
  pcre2_compile_context_free(context);
  if (code->code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("pattern '", std::string(pattern),
                                                   "': ", ErrorText(error), " at ", offset, " of '",
                                                   *translated, "'"));
  }
  // Where the system has no JIT, the interpreter gives the same matches.
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

absl::StatusOr<std::optional<Regex::Match>> Regex::Find(std::string_view text, size_t start,
                                                        Matcher* matcher) const {
  Matcher::Memory& memory = *matcher->memory_;
  const int rc = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                             start, PCRE2_NO_UTF_CHECK, memory.data, memory.context);
  if (rc == PCRE2_ERROR_NOMATCH) return std::optional<Match>();
  if (rc < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("pre-tokenizer pattern failed at byte ", start,
                                                     " of a text of ", text.size(), ": ",
                                                     ErrorText(rc)));
  }
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(memory.data);
  // \K could put the begin behind the end; TranslatePattern refuses it.
  return Match{range[0], range[1]};
}

}  // namespace vivarium::engine
