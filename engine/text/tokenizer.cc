#include "engine/text/tokenizer.h"

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/byte_level.h"
#include "engine/text/nfc.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/tokenizer_spec.h"
#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

absl::Status InFile(std::string_view file, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(View(file), ": ", status.message()));
}

// Where added tokens of one kind are looked for.
AddedTokenMatcher MakeMatcher(const TokenizerSpec& spec, bool special, bool normalized) {
  std::vector<AddedToken> tokens;
  std::vector<std::string> contents;
  for (const AddedToken& token : spec.added_tokens) {
    // Special tokens are found in the text as it was written, whatever `normalized` says: text that
    // only normalizes to a control token's name is not one.
    if (token.special != special || (!special && token.normalized != normalized)) continue;
    tokens.push_back(token);
    contents.push_back(token.content);
    if (!special && normalized && spec.nfc) {
      contents.back().clear();
      AppendNfc(token.content, &contents.back());
    }
  }
  return AddedTokenMatcher(std::move(tokens), contents);
}

// Tokens that the configuration names as bos, eos, pad ... are control tokens, also where
// tokenizer.json has them as ordinary ones, or in its vocabulary only. Single bytes stay text: they
// are needed to write it.
void MarkNamedTokensSpecial(const TokenizerConfig& config, TokenizerSpec* spec) {
  absl::flat_hash_set<std::string> named(config.named_tokens.begin(), config.named_tokens.end());
  for (AddedToken& token : spec->added_tokens) {
    const std::optional<std::string> bytes = ReadByteAlphabet(token.content);
    if (named.erase(token.content) == 0 || (bytes.has_value() && bytes->size() == 1)) continue;
    token.special = true;
  }
  for (const auto& [key, id] : spec->vocab) {
    if (!named.contains(key)) continue;
    const std::optional<std::string> bytes = ReadByteAlphabet(key);
    if (bytes.has_value() && bytes->size() == 1) continue;
    AddedToken token;
    token.id = id;
    token.content = key;
    token.special = true;
    spec->added_tokens.push_back(std::move(token));
  }
}

}  // namespace

struct Tokenizer::Parts {
  AddedTokenMatcher special_tokens;
  AddedTokenMatcher raw_tokens;         // ordinary ones, found before normalization
  AddedTokenMatcher normalized_tokens;  // and after it
  bool nfc = false;
  std::optional<PreTokenizer> pre_tokenizer;
  std::optional<BpeModel> bpe;

  std::string bytes;  // of all tokens, one after the other
  struct Token {
    size_t begin = 0;
    size_t num_bytes = 0;
    bool special = false;
  };
  std::vector<Token> tokens;                                    // by id
  absl::flat_hash_map<absl::string_view, int32_t> id_of_bytes;  // views into `bytes`

  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> eos_token_id;
  bool add_bos_token = false;
  std::string chat_template;
  std::string content_hash;

  explicit Parts(const TokenizerSpec& spec)
      : special_tokens(MakeMatcher(spec, true, false)),
        raw_tokens(MakeMatcher(spec, false, false)),
        normalized_tokens(MakeMatcher(spec, false, true)),
        nfc(spec.nfc) {}

  std::string_view TokenBytes(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= tokens.size()) return {};
    return std::string_view(bytes).substr(tokens[id].begin, tokens[id].num_bytes);
  }
  bool IsSpecial(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens.size() && tokens[id].special;
  }
  void StoreTokens(const TokenizerSpec& spec);
  absl::Status UseConfig(const TokenizerConfig& config, const TokenizerSpec& spec);

  struct EncodeWork {
    PreTokenizer::Work words;
    BpeModel::Work bpe;
    std::vector<int32_t> ids;
    explicit EncodeWork(const Parts& parts) : words(*parts.pre_tokenizer) {}
  };
  absl::Status EncodeOrdinary(std::string_view text, EncodeWork* work) const;
  absl::Status EncodeWords(std::string_view text, EncodeWork* work) const;
};

void Tokenizer::Parts::StoreTokens(const TokenizerSpec& spec) {
  int32_t max_id = -1;
  for (const auto& [key, id] : spec.vocab) max_id = std::max(max_id, id);
  for (const AddedToken& token : spec.added_tokens) max_id = std::max(max_id, token.id);
  tokens.resize(static_cast<size_t>(max_id) + 1);
  const auto store = [this](int32_t id, const std::string& content, bool special) {
    tokens[id] = {bytes.size(), content.size(), special};
    bytes += content;
  };
  for (const auto& [key, id] : spec.vocab) store(id, ReadByteAlphabet(key).value_or(key), false);
  for (const AddedToken& token : spec.added_tokens) store(token.id, token.content, token.special);
  // The bytes no longer move. Where an added token has a vocabulary token's bytes, it is the one
  // that is found.
  for (const AddedToken& token : spec.added_tokens) {
    id_of_bytes.emplace(View(TokenBytes(token.id)), token.id);
  }
  for (const auto& [key, id] : spec.vocab) id_of_bytes.emplace(View(TokenBytes(id)), id);
}

absl::Status Tokenizer::Parts::UseConfig(const TokenizerConfig& config, const TokenizerSpec& spec) {
  const auto find = [this](const std::optional<std::string>& content) -> std::optional<int32_t> {
    if (!content.has_value()) return std::nullopt;
    const auto it = id_of_bytes.find(View(*content));
    return it == id_of_bytes.end() ? std::nullopt : std::optional<int32_t>(it->second);
  };
  bos_token_id = find(config.bos_token);
  eos_token_id = find(config.eos_token);
  if (spec.template_bos.has_value()) {
    if (TokenBytes(*spec.template_bos).empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("post_processor: token ", *spec.template_bos, " does not exist"));
    }
    if (!bos_token_id.has_value()) bos_token_id = spec.template_bos;
  }
  add_bos_token = config.add_bos_token.value_or(spec.template_bos.has_value());
  if (add_bos_token && !bos_token_id.has_value()) {
    return absl::InvalidArgumentError("add_bos_token is true, but there is no BOS token");
  }
  chat_template = config.chat_template;
  return absl::OkStatus();
}

absl::Status Tokenizer::Parts::EncodeWords(std::string_view text, EncodeWork* work) const {
  absl::Status status = pre_tokenizer->Split(text, &work->words);
  for (size_t i = 0; status.ok() && i < work->words.num_words(); ++i) {
    status = bpe->Encode(work->words.word(i), &work->bpe, &work->ids);
  }
  return status;
}

// Text without special tokens: ordinary added tokens, normalization, words.
absl::Status Tokenizer::Parts::EncodeOrdinary(std::string_view text, EncodeWork* work) const {
  FragmentList raw;
  raw_tokens.Split(text, &raw);
  for (const Fragment& fragment : raw.fragments()) {
    if (fragment.id >= 0) {
      work->ids.push_back(fragment.id);
      continue;
    }
    std::string normal;
    if (nfc) AppendNfc(fragment.text, &normal);
    FragmentList pieces;
    normalized_tokens.Split(nfc ? normal : fragment.text, &pieces);
    for (const Fragment& piece : pieces.fragments()) {
      if (piece.id >= 0) {
        work->ids.push_back(piece.id);
        continue;
      }
      if (absl::Status status = EncodeWords(piece.text, work); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view tokenizer_json,
                                                               std::string_view config_json,
                                                               std::string_view chat_template) {
  absl::StatusOr<TokenizerSpec> spec = ParseTokenizerJson(tokenizer_json);
  if (!spec.ok()) return InFile("tokenizer.json", spec.status());
  TokenizerConfig config;
  if (!config_json.empty()) {
    absl::StatusOr<TokenizerConfig> parsed = ParseTokenizerConfig(config_json);
    if (!parsed.ok()) return InFile("tokenizer_config.json", parsed.status());
    config = *std::move(parsed);
  }
  std::string content_hash = HashTokenizerSpec(*spec);
  MarkNamedTokensSpecial(config, &*spec);

  auto parts = std::make_unique<Parts>(*spec);
  parts->content_hash = std::move(content_hash);
  parts->StoreTokens(*spec);
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(spec->pre_tokenizer);
  if (!pre_tokenizer.ok()) return InFile("tokenizer.json", pre_tokenizer.status());
  parts->pre_tokenizer = *std::move(pre_tokenizer);
  absl::StatusOr<BpeModel> bpe =
      BpeModel::Create(*spec, [&parts](int32_t id) { return parts->IsSpecial(id); });
  if (!bpe.ok()) return InFile("tokenizer.json", bpe.status());
  parts->bpe = *std::move(bpe);
  if (absl::Status status = parts->UseConfig(config, *spec); !status.ok()) {
    return InFile("tokenizer_config.json", status);
  }
  if (!chat_template.empty()) parts->chat_template = std::string(chat_template);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  if (options.add_bos && !parts_->bos_token_id.has_value()) {
    return absl::FailedPreconditionError("the tokenizer has no BOS token to add");
  }
  const TextPart part = {text, options.parse_special};
  absl::StatusOr<std::vector<int32_t>> ids = EncodeParts({&part, 1});
  if (ids.ok() && options.add_bos) ids->insert(ids->begin(), *parts_->bos_token_id);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeParts(std::span<const TextPart> parts) const {
  size_t total_bytes = 0;
  for (const TextPart& part : parts) {
    const std::optional<size_t> invalid = FindInvalidUtf8(part.text);
    if (invalid.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("text is not valid UTF-8 at byte ", total_bytes + *invalid));
    }
    total_bytes += part.text.size();
    if (total_bytes > kMaxEncodeBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "text has ", total_bytes, " bytes or more, at most ", kMaxEncodeBytes, " are encoded"));
    }
  }
  FragmentList fragments;
  for (const TextPart& part : parts) {
    if (part.parse_special) {
      parts_->special_tokens.Split(part.text, &fragments);
    } else {
      fragments.AddText(part.text);
    }
  }
  Parts::EncodeWork work(*parts_);
  for (const Fragment& fragment : fragments.fragments()) {
    if (fragment.id >= 0) {
      work.ids.push_back(fragment.id);
      continue;
    }
    absl::Status status = parts_->EncodeOrdinary(fragment.text, &work);
    if (!status.ok()) return status;
  }
  return std::move(work.ids);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !IsSpecial(id)) bytes += TokenBytes(id);
  }
  std::string text;
  text.reserve(bytes.size());
  if (AppendValidUtf8(bytes, &text) > 0) AppendUtf8(0xFFFD, &text);
  return text;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const { return parts_->TokenBytes(id); }

bool Tokenizer::IsSpecial(int32_t id) const { return parts_->IsSpecial(id); }

std::optional<int32_t> Tokenizer::TokenToId(std::string_view content) const {
  const auto it = parts_->id_of_bytes.find(View(content));
  if (it == parts_->id_of_bytes.end()) return std::nullopt;
  return it->second;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->tokens.size()); }
std::optional<int32_t> Tokenizer::bos_token_id() const { return parts_->bos_token_id; }
std::optional<int32_t> Tokenizer::eos_token_id() const { return parts_->eos_token_id; }
bool Tokenizer::add_bos_token() const { return parts_->add_bos_token; }
const std::string& Tokenizer::chat_template() const { return parts_->chat_template; }
const std::string& Tokenizer::content_hash() const { return parts_->content_hash; }

}  // namespace vivarium::engine
