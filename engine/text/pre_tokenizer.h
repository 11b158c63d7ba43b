// Text -> the words that BPE works on, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/regex.h"
#include "engine/text/tokenizer_spec.h"

namespace vivarium::engine {

// The pre-tokenizer of a TokenizerSpec. Immutable; const methods are thread-safe, each caller with
// its own Work.
class PreTokenizer {
 public:
  struct Span {
    uint32_t begin = 0;
    uint32_t end = 0;
  };

  // The result of Split, and the memory it needs. Use it for one PreTokenizer only.
  class Work {
   public:
    explicit Work(const PreTokenizer& pre_tokenizer);
    size_t num_words() const { return spans_.size(); }
    std::string_view word(size_t index) const {
      return text_.substr(spans_[index].begin, spans_[index].end - spans_[index].begin);
    }

   private:
    friend class PreTokenizer;
    std::string_view text_;  // the caller's, or storage_
    std::string storage_;
    std::vector<Span> spans_;
    std::vector<Span> next_spans_;
    std::vector<Regex::Matcher> matchers_;  // one per regex
  };

  // Errors: those of Regex::Compile, naming the step.
  static absl::StatusOr<PreTokenizer> Create(std::vector<PreTokenizerStep> steps);

  // Splits `text` (valid UTF-8, at most 2 GiB), which must outlive the words in `*work`. The words
  // are bytes, never empty. ResourceExhausted: a pattern passed its match limits.
  absl::Status Split(std::string_view text, Work* work) const;

 private:
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  absl::Status SplitPiece(size_t step_index, Span piece, Work* work) const;

  std::vector<PreTokenizerStep> steps_;
  std::vector<Regex> regexes_;         // of the kSplitRegex steps, in order
  std::vector<size_t> regex_of_step_;  // index into regexes_
};

}  // namespace vivarium::engine
