#include "engine/text/text_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

// The longest suffix of `text` that begins a stop string without being the whole of it.
size_t HeldBackBytes(std::string_view text, const std::vector<std::string>& stop_strings) {
  size_t longest = 0;
  for (const std::string& stop : stop_strings) {
    for (size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) longest = n;
    }
  }
  return longest;
}

}  // namespace

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings,
                       std::string tail, bool skip_special)
    : tokenizer_(tokenizer),
      stop_strings_(std::move(stop_strings)),
      tail_(std::move(tail)),
      skip_special_(skip_special) {}

absl::StatusOr<TextStream> TextStream::Create(const Tokenizer* tokenizer,
                                              std::vector<std::string> stop_strings,
                                              std::string tail, bool skip_special) {
  if (stop_strings.size() > kMaxStopStrings) {
    return absl::InvalidArgumentError(absl::StrCat(stop_strings.size(), " stop strings, at most ",
                                                   kMaxStopStrings, " are possible"));
  }
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    const std::string& stop = stop_strings[i];
    if (stop.empty() || stop.size() > kMaxStopStringBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "stop string ", i, " has ", stop.size(), " bytes, expected 1 to ", kMaxStopStringBytes));
    }
    if (const auto invalid = FindInvalidUtf8(stop); invalid.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop string ", i, " is not valid UTF-8 at byte ", *invalid));
    }
  }
  if (!tail.empty()) {
    const Utf8Char c = DecodeUtf8(tail);
    if (c.status != Utf8Status::kIncomplete || c.num_bytes != tail.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tail of ", tail.size(), " bytes is not the beginning of one UTF-8 sequence"));
    }
  }
  return TextStream(tokenizer, std::move(stop_strings), std::move(tail), skip_special);
}

TextStream::Delta TextStream::Push(int32_t id) {
  Delta delta;
  if (skip_special_ && tokenizer_->IsSpecial(id)) return delta;
  tail_ += tokenizer_->TokenBytes(id);
  std::string text;
  const size_t tail_bytes = AppendValidUtf8(tail_, &text);
  tail_.erase(0, tail_.size() - tail_bytes);
  if (stopped_) return delta;  // a token after the stop moves the tail only

  const size_t old_bytes = held_.size();
  held_ += text;
  // A stop string that ends in the held text alone would have been found before.
  for (size_t end = old_bytes + 1; end <= held_.size(); ++end) {
    const std::string_view so_far = std::string_view(held_).substr(0, end);
    size_t stop_bytes = 0;
    for (size_t i = 0; i < stop_strings_.size(); ++i) {
      if (stop_strings_[i].size() <= stop_bytes || !so_far.ends_with(stop_strings_[i])) continue;
      stop_bytes = stop_strings_[i].size();
      delta.stop_index = static_cast<int>(i);
    }
    if (stop_bytes == 0) continue;
    delta.stopped = stopped_ = true;
    delta.text = held_.substr(0, end - stop_bytes);
    held_.clear();
    return delta;
  }
  const size_t emitted = held_.size() - HeldBackBytes(held_, stop_strings_);
  delta.text = held_.substr(0, emitted);
  held_.erase(0, emitted);
  return delta;
}

std::string TextStream::Flush() { return std::exchange(held_, ""); }

std::string TextStream::TakeTail() { return std::exchange(tail_, ""); }

}  // namespace vivarium::engine
