#include "engine/text/tokenizer_pipeline_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/json_fields.h"
#include "engine/text/tokenizer.h"

namespace vivarium::engine {
namespace {

using nlohmann::json;

constexpr int kMaxSequenceDepth = 4;  // Sequences inside Sequences

// Calls `visit(type, fields)` for each part of `part`, through Sequences (whose parts are under
// `list_key`), in order.
template <typename Visit>
absl::Status VisitParts(const json& part, const std::string& place, const char* list_key, int depth,
                        const Visit& visit) {
  if (part.is_null()) return absl::OkStatus();
  absl::Status status;
  const JsonFields fields(part, place, &status);
  const std::string type = fields.RequiredString("type");
  if (!status.ok()) return status;
  if (type != "Sequence") {
    status.Update(visit(type, fields));
    return status;
  }
  if (depth >= kMaxSequenceDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": Sequences nested more than ", kMaxSequenceDepth, " deep"));
  }
  const json& list = fields.RequiredArray(list_key);
  for (size_t i = 0; i < list.size() && status.ok(); ++i) {
    status.Update(VisitParts(list[i], absl::StrCat(place, ".", list_key, "[", i, "]"), list_key,
                             depth + 1, visit));
  }
  return status;
}

absl::Status Unsupported(const char* what, const std::string& type, const char* supported) {
  return absl::UnimplementedError(
      absl::StrCat(what, " type '", type, "' is not supported, only ", supported, " are"));
}

absl::Status ReadBehavior(const JsonFields& fields, const char* absent, SplitBehavior* behavior) {
  const std::string name = fields.String("behavior", absent);
  if (!fields.ok()) return absl::OkStatus();  // the field's own error is reported
  if (name == "Removed") {
    *behavior = SplitBehavior::kRemoved;
  } else if (name == "Isolated") {
    *behavior = SplitBehavior::kIsolated;
  } else if (name == "MergedWithPrevious") {
    *behavior = SplitBehavior::kMergedWithPrevious;
  } else if (name == "MergedWithNext") {
    *behavior = SplitBehavior::kMergedWithNext;
  } else if (name == "Contiguous") {
    *behavior = SplitBehavior::kContiguous;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.Place("behavior"), ": '", name, "' is not a behavior"));
  }
  return absl::OkStatus();
}

absl::Status ReadSplit(const JsonFields& fields, PreTokenizerStep* step) {
  absl::Status status;
  const JsonFields pattern(fields.RequiredObject("pattern"), fields.Place("pattern"), &status);
  const bool is_regex = pattern.Has("Regex");
  step->kind =
      is_regex ? PreTokenizerStep::Kind::kSplitRegex : PreTokenizerStep::Kind::kSplitString;
  step->pattern = pattern.RequiredString(is_regex ? "Regex" : "String");
  step->invert = fields.Bool("invert", false);
  if (!fields.ok()) return absl::OkStatus();
  if (!status.ok()) return status;
  if (step->pattern.empty() || step->pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat(fields.Place("pattern"), ": expected 1 to ",
                                                   kMaxPatternBytes, " bytes, found ",
                                                   step->pattern.size()));
  }
  return ReadBehavior(fields, "", &step->behavior);
}

absl::Status ReadStep(const std::string& type, const JsonFields& fields, PreTokenizerStep* step) {
  using Kind = PreTokenizerStep::Kind;
  if (type == "ByteLevel") {
    step->kind = Kind::kByteLevel;
    step->add_prefix_space = fields.Bool("add_prefix_space", true);
    step->use_regex = fields.Bool("use_regex", true);
    return absl::OkStatus();
  }
  if (type == "Split") return ReadSplit(fields, step);
  if (type == "Digits") {
    step->kind = Kind::kDigits;
    step->behavior = fields.Bool("individual_digits", false) ? SplitBehavior::kIsolated
                                                             : SplitBehavior::kContiguous;
    return absl::OkStatus();
  }
  if (type == "Punctuation") {
    step->kind = Kind::kPunctuation;
    return ReadBehavior(fields, "Isolated", &step->behavior);
  }
  return Unsupported("pre_tokenizer", type, "ByteLevel, Split, Digits, Punctuation and Sequence");
}

// The special token before the text, of a template like [BOS] A; other special tokens are refused.
absl::Status ReadTemplate(const JsonFields& fields, TokenizerSpec* spec) {
  const json& single = fields.RequiredArray("single");
  if (!fields.ok()) return absl::OkStatus();
  for (size_t i = 0; i < single.size(); ++i) {
    if (single[i].is_object() && single[i].contains("Sequence")) continue;
    absl::Status status;
    const JsonFields item(single[i], absl::StrCat(fields.Place("single"), "[", i, "]"), &status);
    const JsonFields token(item.RequiredObject("SpecialToken"), item.Place("SpecialToken"),
                           &status);
    const std::string name = token.RequiredString("id");
    const JsonFields known(fields.RequiredObject("special_tokens"), fields.Place("special_tokens"),
                           &status);
    const JsonFields entry(known.RequiredObject(name.c_str()), known.Place(name.c_str()), &status);
    const json& ids = entry.RequiredArray("ids");
    if (!status.ok()) return status;
    if (i != 0) {
      return absl::UnimplementedError(absl::StrCat(item.Place("SpecialToken"), ": '", name,
                                                   "' not at the beginning is not supported"));
    }
    if (ids.size() != 1 || !ids[0].is_number_unsigned() || ids[0].get<uint64_t>() >= kMaxVocab) {
      return absl::InvalidArgumentError(
          absl::StrCat(entry.Place("ids"), ": expected one id below ", kMaxVocab));
    }
    spec->template_bos = ids[0].get<int32_t>();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadNormalizer(const json& normalizer, TokenizerSpec* spec) {
  return VisitParts(normalizer, "normalizer", "normalizers", 0,
                    [&](const std::string& type, const JsonFields&) -> absl::Status {
                      if (type != "NFC") return Unsupported("normalizer", type, "NFC and Sequence");
                      spec->nfc = true;
                      return absl::OkStatus();
                    });
}

absl::Status ReadPreTokenizer(const json& pre_tokenizer, TokenizerSpec* spec) {
  absl::Status status =
      VisitParts(pre_tokenizer, "pre_tokenizer", "pretokenizers", 0,
                 [&](const std::string& type, const JsonFields& fields) -> absl::Status {
                   if (spec->pre_tokenizer.size() == kMaxPreTokenizerSteps) {
                     return absl::InvalidArgumentError(absl::StrCat(
                         "pre_tokenizer has more than ", kMaxPreTokenizerSteps, " steps"));
                   }
                   return ReadStep(type, fields, &spec->pre_tokenizer.emplace_back());
                 });
  if (!status.ok()) return status;
  const auto num_byte_level = std::count_if(
      spec->pre_tokenizer.begin(), spec->pre_tokenizer.end(),
      [](const auto& step) { return step.kind == PreTokenizerStep::Kind::kByteLevel; });
  if (num_byte_level != 1) {
    return absl::UnimplementedError(
        absl::StrCat("pre_tokenizer has ", num_byte_level,
                     " ByteLevel steps, expected 1: only byte-level BPE is supported"));
  }
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const json& post_processor, TokenizerSpec* spec) {
  return VisitParts(post_processor, "post_processor", "processors", 0,
                    [&](const std::string& type, const JsonFields& fields) -> absl::Status {
                      if (type == "ByteLevel") return absl::OkStatus();  // offsets only
                      if (type == "TemplateProcessing") return ReadTemplate(fields, spec);
                      return Unsupported("post_processor", type,
                                         "ByteLevel, TemplateProcessing and Sequence");
                    });
}

absl::Status CheckDecoder(const json& decoder) {
  return VisitParts(decoder, "decoder", "decoders", 0,
                    [&](const std::string& type, const JsonFields&) -> absl::Status {
                      if (type == "ByteLevel") return absl::OkStatus();
                      return Unsupported("decoder", type, "ByteLevel and Sequence");
                    });
}

}  // namespace vivarium::engine
