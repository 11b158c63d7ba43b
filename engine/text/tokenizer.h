// Text <-> token ids, as a Hugging Face `tokenizer.json` of the byte-level BPE family says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::engine {

// Bounds, each tested at the bound and one past it.
inline constexpr size_t kMaxTokenizerFileBytes = size_t{64} << 20;   // tokenizer.json
inline constexpr size_t kMaxTokenizerConfigBytes = size_t{4} << 20;  // tokenizer_config.json
inline constexpr int kMaxTokenizerJsonDepth = 64;                    // nesting in either
inline constexpr int32_t kMaxVocab = 1 << 20;                        // ids are below it
inline constexpr size_t kMaxTokenBytes = 4096;                       // of one token
inline constexpr size_t kMaxAddedTokens = 1 << 16;
// Of one Encode. One hostile word of this length costs about 24 bytes of memory per byte.
inline constexpr size_t kMaxEncodeBytes = size_t{32} << 20;

// A tokenizer. Immutable after Load: every method is const and may be called from any number of
// threads at once. Views it returns live as long as it does.
//
// What it understands: a `BPE` model over bytes (the 256 byte characters of GPT-2), pre-tokenizers
// ByteLevel, Split, Digits, Punctuation and Sequences of them, normalizers NFC and Sequences of it,
// added tokens with all their flags, post-processors ByteLevel and TemplateProcessing (only "BOS
// comes first"). Anything else is refused by name rather than approximated.
class Tokenizer {
 public:
  // Reads `dir`/tokenizer.json and, where present, `dir`/tokenizer_config.json (bos, eos and other
  // named special tokens, add_bos_token, chat_template) and `dir`/chat_template.jinja.
  // NotFound: no tokenizer.json. InvalidArgument: a file is malformed or past a bound (the message
  // names file, place, expected, found). Unimplemented: a kind of tokenizer not listed above.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& dir);

  // The same from the files' contents; the last two may be empty. A chat template of its own goes
  // before the configuration's.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view tokenizer_json,
                                                             std::string_view config_json,
                                                             std::string_view chat_template = {});

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  struct EncodeOptions {
    // Whether the text of a special token means that token. Otherwise it is ordinary text, and no
    // special token is ever in the result (but for BOS if asked for).
    bool parse_special = false;
    // Puts the BOS token first; FailedPrecondition if the tokenizer has none.
    bool add_bos = false;
  };

  // The ids of `text`. InvalidArgument: `text` is not valid UTF-8 (the message names the byte
  // offset), is longer than kMaxEncodeBytes, or has a byte the vocabulary lacks.
  // ResourceExhausted: the pre-tokenizer's regex passed its match limits.
  // Time is O(n log n) for any text.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const;

  // One text in parts of different trust: special tokens are found only inside parts that allow
  // them, but ordinary text is split into words as if the parts were one string. So a chat prompt
  // gets the ids it had in training while its messages cannot forge control tokens.
  struct TextPart {
    std::string_view text;
    bool parse_special = false;
  };
  absl::StatusOr<std::vector<int32_t>> EncodeParts(std::span<const TextPart> parts) const;

  // The text of `ids`, always valid UTF-8: bytes that are not become U+FFFD (one per maximal
  // invalid subsequence). Ids that don't exist give nothing; special tokens their content, or
  // nothing if `skip_special`. Decode(Encode(x)) is the normalized x.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // The raw bytes of a token (perhaps part of a UTF-8 sequence); an added token's content; empty
  // for an id that doesn't exist.
  std::string_view TokenBytes(int32_t id) const;
  // Control tokens: marked special in tokenizer.json, or named in tokenizer_config.json
  // (bos_token, eos_token, pad_token, additional_special_tokens ...).
  bool IsSpecial(int32_t id) const;
  // The added token with this content, else the vocabulary's token with these bytes.
  std::optional<int32_t> TokenToId(std::string_view content) const;

  // 1 + the highest id that exists. A model may have more (padded) rows; their ids mean nothing.
  int32_t vocab_size() const;
  std::optional<int32_t> bos_token_id() const;
  std::optional<int32_t> eos_token_id() const;
  // Whether a text at position 0 starts with BOS, as tokenizer_config.json's add_bos_token says,
  // else the post-processor's template.
  bool add_bos_token() const;
  // The Jinja source; empty if there is none.
  const std::string& chat_template() const;
  // 32 hex digits (XXH3-128) over what gives ids their meaning: vocabulary, merges, added tokens,
  // normalizer, pre-tokenizer. Equal for files that differ only in layout or in written defaults.
  const std::string& content_hash() const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);

  std::unique_ptr<const Parts> parts_;
};

}  // namespace vivarium::engine
