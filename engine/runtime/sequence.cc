#include "engine/runtime/sequence.h"

#include <algorithm>
#include <utility>

namespace vivarium::engine {

absl::StatusOr<std::unique_ptr<Sequence>> Sequence::Create(StreamId id, EngineRequest request,
                                                           std::unique_ptr<StreamSink> sink,
                                                           const Tokenizer* tokenizer,
                                                           std::span<const int32_t> eos_ids) {
  std::unique_ptr<Sequence> sequence(new Sequence(id, std::move(request), std::move(sink)));
  EngineRequest& own = sequence->request_;
  // New input begins a new text: an incomplete character before it stays incomplete.
  std::string tail;
  if (own.source != nullptr && own.prompt.empty()) tail = own.source->text_tail;
  if (tokenizer != nullptr) {
    auto text = TextStream::Create(tokenizer, own.stop.stop_strings, std::move(tail));
    if (!text.ok()) return text.status();
    sequence->text_ = *std::move(text);
  }
  sequence->stop_ids_ = own.stop.stop_token_ids;
  if (!own.stop.ignore_eos) {
    sequence->stop_ids_.insert(sequence->stop_ids_.end(), eos_ids.begin(), eos_ids.end());
  }
  sequence->BuildThread(&own);
  return sequence;
}

Sequence::Sequence(StreamId id, EngineRequest request, std::unique_ptr<StreamSink> sink)
    : submit_time(Clock::now()), id_(id), request_(std::move(request)), sink_(std::move(sink)) {}

void Sequence::BuildThread(EngineRequest* request) {
  if (request->source != nullptr) {
    StateSnapshot& source = *request->source;
    has_source_ = true;
    source_position_ = source.position;
    thread_ = std::move(source.recent_tokens);
    first_index_ = source.position + 1 - thread_.size();
    host = std::move(source.slot);
    hot = std::move(request->hot);
    transcript_begin_ = source.position + 1;
    request->source.reset();
  }
  thread_.reserve(thread_.size() + request->prompt.size());
  for (const int32_t id : request->prompt) thread_.push_back({id, /*is_output=*/false});
  std::vector<int32_t>().swap(request->prompt);
  position_ = source_position_;
  prompt_last_ = first_index_ + thread_.size() - 1;
  prefill_end_ = request->max_tokens == 0 ? prompt_last_ : prompt_last_ + 1;
}

RunNeed Sequence::Need() const {
  if (!in_prefill()) return {.num_tokens = is_complete() ? 0 : 1, .is_decode = !is_complete()};
  return {.num_tokens = static_cast<int64_t>(prefill_end_ - position_),
          .is_decode = false,
          .logits_every_row = request_.score};
}

std::span<const TranscriptToken> Sequence::RecentUpTo(uint64_t last) const {
  const uint64_t end = last + 1 - first_index_;
  const uint64_t size = std::min<uint64_t>(end, kRecentTokenWindow);
  return std::span<const TranscriptToken>(thread_).subspan(end - size, size);
}

std::span<const int32_t> Sequence::banned_ids() const {
  if (output_tokens_ >= request_.min_tokens) return {};
  return stop_ids_;
}

std::optional<Ending> Sequence::Accept(int32_t token_id, TokenEvent* event) {
  thread_.push_back({token_id, /*is_output=*/true});
  ++output_tokens_;
  event->token_id = token_id;
  if (std::find(stop_ids_.begin(), stop_ids_.end(), token_id) != stop_ids_.end()) {
    return Ending{.reason = FinishReason::kStop, .stop_token_id = token_id};
  }
  if (text_) {
    TextStream::Delta delta = text_->Push(token_id);
    event->text = std::move(delta.text);
    if (delta.stopped) {
      return Ending{.reason = FinishReason::kStop,
                    .stop = request_.stop.stop_strings[delta.stop_index]};
    }
  }
  if (output_tokens_ == request_.max_tokens) return Ending{.reason = FinishReason::kLength};
  return std::nullopt;
}

DueState Sequence::Ask(uint64_t position) {
  const uint64_t every = request_.save.every_tokens;
  if (every > 0 && position % every == 0) {
    if (sink_->AcceptsSnapshot(position)) return DueState::kSnapshot;
    ++skipped_snapshots_;
    return DueState::kNone;
  }
  const std::vector<uint64_t>& positions = request_.save.prompt_positions;
  const bool is_wanted = std::binary_search(positions.begin(), positions.end(), position);
  return is_wanted && sink_->AcceptsPromptState(position) ? DueState::kPrompt : DueState::kNone;
}

DueState Sequence::DueAt(uint64_t position) {
  if (IsPromptEnd(position)) return DueState::kSnapshot;
  if (position == source_position_) return DueState::kNone;
  if (std::exchange(asked_position_, position) != position) answer_ = Ask(position);
  return answer_;
}

uint64_t Sequence::NextSnapshot(uint64_t position, uint64_t end) {
  const uint64_t every = request_.save.every_tokens;
  while (true) {
    uint64_t next = end;
    if (request_.save.at_prompt_end && position < prompt_last_) next = std::min(next, prompt_last_);
    if (every > 0) next = std::min(next, position + (every - position % every));
    const std::vector<uint64_t>& positions = request_.save.prompt_positions;
    const auto wanted = std::upper_bound(positions.begin(), positions.end(), position);
    if (wanted != positions.end()) next = std::min(next, *wanted);
    if (next == end || DueAt(next) != DueState::kNone) return next;
    position = next;
  }
}

StateSnapshot Sequence::Describe(const ModelIdentity& identity, const StateLayout& layout,
                                 bool is_of_chain) {
  StateSnapshot state;
  state.identity = identity;
  state.layout = layout;
  state.position = position_;
  state.pending_token = pending_token();
  state.sampling = request_.sampling;
  const auto recent = RecentUpTo(position_);
  state.recent_tokens.assign(recent.begin(), recent.end());
  if (text_) {
    TextStream copy = *text_;  // the stream may go on: its tail stays with it
    state.text_tail = copy.TakeTail();
  }
  for (; is_of_chain && transcript_begin_ <= position_; ++transcript_begin_) {
    state.transcript.push_back(TokenAt(transcript_begin_));
  }
  return state;
}

}  // namespace vivarium::engine
