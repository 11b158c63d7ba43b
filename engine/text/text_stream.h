// Token ids -> text deltas for a client, stopping at stop strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace vivarium::engine {

inline constexpr size_t kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;  // of one
inline constexpr size_t kMaxUtf8TailBytes = 3;      // of an incomplete UTF-8 sequence

// The detokenizer of one generation. Every delta is valid UTF-8: an incomplete sequence at the end
// waits for its next token, invalid bytes become U+FFFD. Concatenated, deltas and Flush are the
// Decode of the same ids (specials skipped), less the incomplete tail, cut at the stop.
//
// Stops: the stop string that is complete first (at the earliest byte) wins; of several ending at
// that byte, the longest. So the result depends on the text alone, not on how it came in tokens.
// Text that may turn out to be the beginning of a stop string is held back until that is decided;
// at most kMaxStopStringBytes - 1 bytes are. Stop strings don't match text of earlier calls.
//
// Not thread-safe; movable. `tokenizer` must outlive it.
class TextStream {
 public:
  struct Delta {
    std::string text;  // valid UTF-8, perhaps empty
    bool stopped = false;
    int stop_index = -1;  // into `stop_strings`, if stopped
  };

  // `tail`: the incomplete UTF-8 of the state this generation goes on from (TakeTail), or empty.
  // `skip_special`: special tokens give no text; otherwise their content.
  // InvalidArgument: too many stop strings; one is empty, too long, or not UTF-8; `tail` is not the
  // beginning of one UTF-8 sequence.
  static absl::StatusOr<TextStream> Create(const Tokenizer* tokenizer,
                                           std::vector<std::string> stop_strings, std::string tail,
                                           bool skip_special = true);

  // Takes the next token; ids that don't exist give no text. When it completes a stop string, the
  // text before that string is returned and `stopped` set; nothing comes out afterwards.
  Delta Push(int32_t id);

  // At the end of the generation: the text still held back as a possible stop string; empty after
  // a stop. Incomplete UTF-8 stays for TakeTail.
  std::string Flush();

  // The incomplete UTF-8 sequence at the end (0 to 3 bytes), to be kept in the state: the text of
  // the next generation's first token completes it. Moves it out.
  std::string TakeTail();

 private:
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings, std::string tail,
             bool skip_special);

  const Tokenizer* tokenizer_;
  std::vector<std::string> stop_strings_;
  std::string tail_;  // incomplete UTF-8
  std::string held_;  // valid UTF-8, may begin a stop string
  bool skip_special_;
  bool stopped_ = false;
};

}  // namespace vivarium::engine
