// tokenizer.json -> TokenizerSpec: the BPE model and the added tokens. What surrounds them is in
// tokenizer_pipeline_json.cc.
#include <array>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/text/byte_level.h"
#include "engine/text/json_fields.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_pipeline_json.h"
#include "engine/text/tokenizer_spec.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;
using IdOfKey = absl::flat_hash_map<std::string, int32_t>;

absl::Status CheckId(const std::string& place, int64_t id) {
  if (id >= 0 && id < kMaxVocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(place, ": id ", id, " is outside of [0, ", kMaxVocab, ")"));
}

// Options of the model that would change the result, and are not done here.
absl::Status CheckModelKind(const JsonFields& model) {
  const std::string type = model.String("type", "BPE");
  if (type != "BPE") {
    return absl::UnimplementedError(
        absl::StrCat("model.type '", type, "' is not supported, only byte-level BPE is"));
  }
  if (model.Bool("byte_fallback", false)) {
    return absl::UnimplementedError("model.byte_fallback is not supported");
  }
  const json& dropout = model.Get("dropout");
  if (!dropout.is_null() && dropout != 0) {
    return absl::UnimplementedError(
        absl::StrCat("model.dropout ", DescribeJsonValue(dropout), " is not supported"));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const std::string affix = model.String(key, "");
    if (!affix.empty()) {
      return absl::UnimplementedError(
          absl::StrCat("model.", key, " '", affix, "' is not supported"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadVocab(const json& vocab, TokenizerSpec* spec, IdOfKey* id_of_key) {
  if (vocab.size() > static_cast<size_t>(kMaxVocab)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.vocab has ", vocab.size(), " entries, at most ", kMaxVocab));
  }
  absl::flat_hash_map<int32_t, const std::string*> key_of_id;
  spec->vocab.reserve(vocab.size());
  id_of_key->reserve(vocab.size());
  for (auto it = vocab.begin(); it != vocab.end(); ++it) {
    const std::string place = absl::StrCat("model.vocab['", it.key(), "']");
    if (it.key().empty()) return absl::InvalidArgumentError("model.vocab has an empty token");
    const size_t num_bytes = it.key().size() <= kMaxTokenBytes
                                 ? it.key().size()
                                 : ReadByteAlphabet(it.key()).value_or(it.key()).size();
    if (num_bytes > kMaxTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat("model.vocab has a token of ", num_bytes,
                                                     " bytes, at most ", kMaxTokenBytes));
    }
    if (!it->is_number_integer()) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": expected an integer, found ", DescribeJsonValue(*it)));
    }
    const bool huge = it->is_number_unsigned() && it->get<uint64_t>() > uint64_t{INT64_MAX};
    const int64_t id = huge ? INT64_MAX : it->get<int64_t>();
    if (absl::Status status = CheckId(place, id); !status.ok()) return status;
    spec->vocab.emplace_back(it.key(), static_cast<int32_t>(id));
    id_of_key->emplace(it.key(), static_cast<int32_t>(id));
    const auto [other, is_new] = key_of_id.try_emplace(static_cast<int32_t>(id), &it.key());
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat(place, ": id ", id, " is used twice"));
    }
  }
  return absl::OkStatus();
}

// Both forms: "left right", and ["left", "right"].
absl::StatusOr<std::array<std::string, 2>> SplitMerge(const json& merge, const std::string& place) {
  if (merge.is_array()) {
    if (merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      return std::array<std::string, 2>{merge[0].get<std::string>(), merge[1].get<std::string>()};
    }
  } else if (merge.is_string()) {
    const std::string& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::array<std::string, 2>{text.substr(0, space), text.substr(space + 1)};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(place, ": expected \"left right\" or [\"left\", \"right\"], found ",
                   DescribeJsonValue(merge)));
}

absl::Status ReadMerges(const json& merges, const IdOfKey& id_of_key, TokenizerSpec* spec) {
  if (merges.size() > static_cast<size_t>(kMaxVocab)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.merges has ", merges.size(), " entries, at most ", kMaxVocab));
  }
  spec->merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string place = absl::StrCat("model.merges[", i, "]");
    // The first line of a merges.txt, kept by some converters.
    if (merges[i].is_string() &&
        merges[i].get_ref<const std::string&>().rfind("#version", 0) == 0) {
      continue;
    }
    absl::StatusOr<std::array<std::string, 2>> pair = SplitMerge(merges[i], place);
    if (!pair.ok()) return pair.status();
    std::array<int32_t, 3> ids;
    const std::array<std::string, 3> keys = {(*pair)[0], (*pair)[1], (*pair)[0] + (*pair)[1]};
    for (int k = 0; k < 3; ++k) {
      const auto it = id_of_key.find(keys[k]);
      if (it == id_of_key.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(place, ": token '", keys[k], "' is not in model.vocab"));
      }
      ids[k] = it->second;
    }
    spec->merges.push_back({ids[0], ids[1], ids[2]});
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const json& tokens, TokenizerSpec* spec) {
  if (tokens.is_null()) return absl::OkStatus();
  if (!tokens.is_array() || tokens.size() > kMaxAddedTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("added_tokens: expected an array of at most ", kMaxAddedTokens, ", found ",
                     DescribeJsonValue(tokens), " of ", tokens.size()));
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    absl::Status status;
    const JsonFields fields(tokens[i], absl::StrCat("added_tokens[", i, "]"), &status);
    const int64_t id = fields.RequiredInt("id");
    fields.Fail(CheckId(fields.Place("id"), id));
    AddedToken token;
    token.content = fields.RequiredString("content");
    token.special = fields.Bool("special", false);
    token.single_word = fields.Bool("single_word", false);
    token.lstrip = fields.Bool("lstrip", false);
    token.rstrip = fields.Bool("rstrip", false);
    token.normalized = fields.Bool("normalized", !token.special);
    if (!status.ok()) return status;
    token.id = static_cast<int32_t>(id);
    spec->added_tokens.push_back(std::move(token));
  }
  return CheckAddedTokens(*spec);
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerJson(std::string_view text) {
  absl::StatusOr<json> root = ParseJson(text, kMaxTokenizerJsonDepth);
  if (!root.ok()) return root.status();
  absl::Status status;
  const JsonFields file(*root, "(root)", &status);
  const JsonFields model(file.RequiredObject("model"), "model", &status);
  if (!status.ok()) return status;
  TokenizerSpec spec;
  IdOfKey id_of_key;
  const absl::Status kind = CheckModelKind(model);
  status.Update(kind);
  if (!status.ok()) return status;
  spec.ignore_merges = model.Bool("ignore_merges", false);
  const json& vocab = model.RequiredObject("vocab");
  const json& merges = model.RequiredArray("merges");
  if (!status.ok()) return status;
  status.Update(ReadVocab(vocab, &spec, &id_of_key));
  if (status.ok()) status.Update(ReadMerges(merges, id_of_key, &spec));
  if (status.ok()) status.Update(ReadAddedTokens(file.Get("added_tokens"), &spec));
  if (status.ok()) status.Update(ReadNormalizer(file.Get("normalizer"), &spec));
  if (status.ok()) status.Update(ReadPreTokenizer(file.Get("pre_tokenizer"), &spec));
  if (status.ok()) status.Update(ReadPostProcessor(file.Get("post_processor"), &spec));
  if (status.ok()) status.Update(CheckDecoder(file.Get("decoder")));
  if (!status.ok()) return status;
  return spec;
}

}  // namespace vivarium::engine
