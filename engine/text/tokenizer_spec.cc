#include "engine/text/tokenizer_spec.h"

#include <xxhash.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/text/byte_level.h"
#include "engine/text/tokenizer.h"

namespace vivarium::engine {

absl::Status CheckAddedTokens(const TokenizerSpec& spec) {
  absl::flat_hash_map<int32_t, const std::string*> key_of_id;
  absl::flat_hash_map<absl::string_view, int32_t> id_of_key;
  for (const auto& [key, id] : spec.vocab) {
    key_of_id[id] = &key;
    id_of_key[key] = id;
  }
  std::set<int32_t> ids;
  std::set<std::string> contents;
  for (const AddedToken& token : spec.added_tokens) {
    const std::string name = absl::StrCat("added token ", token.id, " '", token.content, "'");
    if (token.content.empty()) return absl::InvalidArgumentError(name + " is empty");
    if (token.content.size() > kMaxTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", token.id, " has ",
                                                     token.content.size(), " bytes, at most ",
                                                     kMaxTokenBytes, " are possible"));
    }
    if (!ids.insert(token.id).second) return absl::InvalidArgumentError(name + ": id used twice");
    if (!contents.insert(token.content).second) {
      return absl::InvalidArgumentError(name + ": content used twice");
    }
    const auto same_key = id_of_key.find(token.content);
    if (same_key != id_of_key.end() && same_key->second != token.id) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": the vocabulary has it as ", same_key->second));
    }
    const auto it = key_of_id.find(token.id);
    if (it == key_of_id.end() || *it->second == token.content) continue;
    if (ReadByteAlphabet(*it->second) == token.content) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": the vocabulary has '", *it->second, "' under this id"));
  }
  return absl::OkStatus();
}

namespace {

// Numbers and strings in an unambiguous form, hashed as they come.
class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void Number(uint64_t value) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
    XXH3_128bits_update(state_, bytes, sizeof(bytes));
  }
  void String(std::string_view text) {
    Number(text.size());
    XXH3_128bits_update(state_, text.data(), text.size());
  }
  std::string Hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16),
                        absl::Hex(hash.low64, absl::kZeroPad16));
  }

 private:
  XXH3_state_t* state_;
};

void HashStep(const PreTokenizerStep& step, Hasher* hasher) {
  hasher->Number(static_cast<uint64_t>(step.kind));
  hasher->Number(step.add_prefix_space);
  hasher->Number(step.use_regex);
  hasher->String(step.pattern);
  hasher->Number(step.invert);
  hasher->Number(static_cast<uint64_t>(step.behavior));
}

}  // namespace

std::string HashTokenizerSpec(const TokenizerSpec& spec) {
  Hasher hasher;
  hasher.String("vivarium tokenizer 1");
  auto vocab = spec.vocab;
  std::sort(vocab.begin(), vocab.end(),
            [](const auto& a, const auto& b) { return a.second < b.second; });
  hasher.Number(vocab.size());
  for (const auto& [key, id] : vocab) {
    hasher.Number(static_cast<uint64_t>(id));
    hasher.String(key);
  }
  hasher.Number(spec.merges.size());
  for (const Merge& merge : spec.merges) {
    hasher.Number(static_cast<uint64_t>(merge.left));
    hasher.Number(static_cast<uint64_t>(merge.right));
  }
  auto added = spec.added_tokens;
  std::sort(added.begin(), added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  hasher.Number(added.size());
  for (const AddedToken& token : added) {
    hasher.Number(static_cast<uint64_t>(token.id));
    hasher.String(token.content);
    hasher.Number(token.special);
    hasher.Number(token.single_word);
    hasher.Number(token.lstrip);
    hasher.Number(token.rstrip);
    hasher.Number(token.normalized);
  }
  hasher.Number(spec.ignore_merges);
  hasher.Number(spec.nfc);
  hasher.Number(spec.pre_tokenizer.size());
  for (const PreTokenizerStep& step : spec.pre_tokenizer) HashStep(step, &hasher);
  return hasher.Hex();
}

}  // namespace vivarium::engine
