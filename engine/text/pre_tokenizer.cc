#include "engine/text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/byte_level.h"
#include "engine/text/gpt2_scanner.h"
#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

using Kind = PreTokenizerStep::Kind;
using Span = PreTokenizer::Span;

// Turns the sequence of matches and gaps of one piece into pieces, as a SplitBehavior says.
class PieceMaker {
 public:
  PieceMaker(SplitBehavior behavior, bool invert, std::vector<Span>* out)
      : behavior_(behavior), invert_(invert), first_(out->size()), out_(out) {}

  void Add(size_t begin, size_t end, bool is_match) {
    is_match = is_match != invert_;
    const Span span = {static_cast<uint32_t>(begin), static_cast<uint32_t>(end)};
    const bool has_piece = out_->size() > first_;
    switch (behavior_) {
      case SplitBehavior::kRemoved:
        if (!is_match) Push(span);
        break;
      case SplitBehavior::kIsolated:
        Push(span);
        break;
      case SplitBehavior::kContiguous:
        PushOrExtend(span, has_piece && is_match == previous_match_);
        break;
      case SplitBehavior::kMergedWithPrevious:
        PushOrExtend(span, has_piece && is_match && !previous_match_);
        break;
      case SplitBehavior::kMergedWithNext:
        // A gap joins the match before it; of several matches in a row only the last is joined.
        PushOrExtend(span, has_piece && !is_match && previous_match_);
        break;
    }
    previous_match_ = is_match;
  }

  // Empty matches count while pieces are made, and are no pieces in the end.
  void DropEmpty() {
    out_->erase(std::remove_if(out_->begin() + static_cast<ptrdiff_t>(first_), out_->end(),
                               [](Span span) { return span.begin == span.end; }),
                out_->end());
  }

 private:
  void Push(Span span) { out_->push_back(span); }
  void PushOrExtend(Span span, bool extend) {
    if (extend) {
      out_->back().end = span.end;
    } else {
      Push(span);
    }
  }

  SplitBehavior behavior_;
  bool invert_;
  size_t first_;
  std::vector<Span>* out_;
  bool previous_match_ = false;
};

// Each character of the class is a match of its own.
template <typename IsInClass>
void SplitByClass(std::string_view text, Span piece, IsInClass is_in_class, PieceMaker* maker) {
  size_t gap = piece.begin;
  for (size_t pos = piece.begin; pos < piece.end;) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    if (is_in_class(c.code)) {
      if (gap < pos) maker->Add(gap, pos, false);
      maker->Add(pos, pos + c.num_bytes, true);
      gap = pos + c.num_bytes;
    }
    pos += c.num_bytes;
  }
  if (gap < piece.end) maker->Add(gap, piece.end, false);
}

void SplitByString(std::string_view text, Span piece, std::string_view pattern, PieceMaker* maker) {
  const std::string_view inside = text.substr(0, piece.end);
  size_t gap = piece.begin;
  while (true) {
    const size_t pos = inside.find(pattern, gap);
    if (pos == std::string_view::npos) break;
    if (gap < pos) maker->Add(gap, pos, false);
    maker->Add(pos, pos + pattern.size(), true);
    gap = pos + pattern.size();
  }
  if (gap < piece.end) maker->Add(gap, piece.end, false);
}

absl::Status SplitByRegex(std::string_view text, Span piece, const Regex& regex,
                          Regex::Matcher* matcher, PieceMaker* maker) {
  // The pattern sees the piece alone: nothing before or behind it, as for lookarounds and anchors.
  const std::string_view inside = text.substr(piece.begin, piece.end - piece.begin);
  size_t gap = 0;     // what follows the last match
  size_t search = 0;  // where the next one may begin
  while (search <= inside.size()) {
    absl::StatusOr<std::optional<Regex::Match>> match = regex.Find(inside, search, matcher);
    if (!match.ok()) return match.status();
    if (!match->has_value()) break;
    const auto [begin, end] = **match;
    if (gap < begin) maker->Add(piece.begin + gap, piece.begin + begin, false);
    maker->Add(piece.begin + begin, piece.begin + end, true);
    gap = end;
    search = end;
    if (begin == end) {  // an empty match only parts what is around it
      if (end == inside.size()) break;
      search = end + DecodeUtf8(inside.substr(end)).num_bytes;
    }
  }
  if (gap < inside.size()) maker->Add(piece.begin + gap, piece.end, false);
  return absl::OkStatus();
}

void SplitByGpt2(std::string_view text, Span piece, std::vector<Span>* out) {
  const std::string_view inside = text.substr(0, piece.end);
  size_t pos = piece.begin;
  while (pos < piece.end) {
    const size_t end = FindGpt2WordEnd(inside, pos);
    out->push_back({static_cast<uint32_t>(pos), static_cast<uint32_t>(end)});
    pos = end;
  }
}

// Replaces each piece by `rewrite(piece)`, in one new string.
template <typename Rewrite>
void RewritePieces(std::string_view text, const Rewrite& rewrite, std::vector<Span>* spans,
                   std::string* out) {
  for (Span& span : *spans) {
    const auto begin = static_cast<uint32_t>(out->size());
    rewrite(text.substr(span.begin, span.end - span.begin), out);
    span = {begin, static_cast<uint32_t>(out->size())};
  }
}

void AddPrefixSpace(std::string_view piece, std::string* out) {
  if (piece.front() != ' ') out->push_back(' ');
  out->append(piece);
}

}  // namespace

PreTokenizer::Work::Work(const PreTokenizer& pre_tokenizer) {
  for (const Regex& regex : pre_tokenizer.regexes_) matchers_.emplace_back(regex);
}

absl::StatusOr<PreTokenizer> PreTokenizer::Create(std::vector<PreTokenizerStep> steps) {
  PreTokenizer result(std::move(steps));
  for (size_t i = 0; i < result.steps_.size(); ++i) {
    result.regex_of_step_.push_back(result.regexes_.size());
    if (result.steps_[i].kind != Kind::kSplitRegex) continue;
    absl::StatusOr<Regex> regex = Regex::Compile(result.steps_[i].pattern);
    if (!regex.ok()) {
      return absl::Status(regex.status().code(),
                          absl::StrCat("pre_tokenizer step ", i, ": ", regex.status().message()));
    }
    result.regexes_.push_back(*std::move(regex));
  }
  return result;
}

absl::Status PreTokenizer::SplitPiece(size_t step_index, Span piece, Work* work) const {
  const PreTokenizerStep& step = steps_[step_index];
  PieceMaker maker(step.behavior, step.invert, &work->next_spans_);
  switch (step.kind) {
    case Kind::kByteLevel:
      if (step.use_regex) {
        SplitByGpt2(work->text_, piece, &work->next_spans_);
      } else {
        work->next_spans_.push_back(piece);
      }
      break;
    case Kind::kSplitString:
      SplitByString(work->text_, piece, step.pattern, &maker);
      break;
    case Kind::kSplitRegex: {
      const size_t regex = regex_of_step_[step_index];
      absl::Status status =
          SplitByRegex(work->text_, piece, regexes_[regex], &work->matchers_[regex], &maker);
      maker.DropEmpty();
      return status;
    }
    case Kind::kDigits:
      SplitByClass(work->text_, piece, IsNumber, &maker);
      break;
    case Kind::kPunctuation:
      SplitByClass(work->text_, piece, IsPunctuation, &maker);
      break;
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(std::string_view text, Work* work) const {
  work->text_ = text;
  work->spans_.clear();
  if (text.empty()) return absl::OkStatus();
  work->spans_.push_back({0, static_cast<uint32_t>(text.size())});
  bool in_byte_alphabet = false;
  // Each rewriting reads work->text_ and leaves its result in work->storage_.
  const auto rewrite = [work](const auto& rewrite_piece) {
    std::string out;
    out.reserve(work->text_.size() + work->text_.size() / 4);
    RewritePieces(work->text_, rewrite_piece, &work->spans_, &out);
    work->storage_ = std::move(out);
    work->text_ = work->storage_;
  };
  for (size_t i = 0; i < steps_.size(); ++i) {
    const bool is_byte_level = steps_[i].kind == Kind::kByteLevel;
    if (is_byte_level && steps_[i].add_prefix_space) rewrite(AddPrefixSpace);
    work->next_spans_.clear();
    for (const Span piece : work->spans_) {
      if (absl::Status status = SplitPiece(i, piece, work); !status.ok()) return status;
    }
    std::swap(work->spans_, work->next_spans_);
    // Steps after ByteLevel see its byte alphabet, in which some bytes are digits or letters that
    // the text does not have: Falcon's pre-tokenizer is one where this matters.
    if (is_byte_level && i + 1 < steps_.size()) {
      in_byte_alphabet = true;
      rewrite([](std::string_view piece, std::string* out) {
        for (const char byte : piece) AppendUtf8(CharOfByte(static_cast<uint8_t>(byte)), out);
      });
    }
  }
  if (in_byte_alphabet) {
    rewrite([](std::string_view piece, std::string* out) {
      // Split steps only part the text, so that all of it is still in the alphabet.
      out->append(ReadByteAlphabet(piece).value());
    });
  }
  return absl::OkStatus();
}

}  // namespace vivarium::engine
