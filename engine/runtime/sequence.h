// Sequence: one stream inside the engine, from Submit to OnFinished.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/scheduler.h"
#include "engine/runtime/state.h"
#include "engine/text/text_stream.h"

namespace vivarium::engine {

// Why and how a stream ends.
struct Ending {
  FinishReason reason;
  std::string stop = {};  // the stop string that matched
  std::optional<int32_t> stop_token_id = {};
};

// What is to be handed out at a position.
enum class DueState : uint8_t {
  kNone,
  kSnapshot,  // the next of the stream's chain
  kPrompt,    // one of SavePolicy::prompt_positions: beside the chain
};

// A thread of tokens and how far it is consumed. Tokens have absolute indices: the thread's first
// is 0. `position` tokens are consumed, and between steps the token at index `position` always
// exists: it is the pending one. So at any time between steps the stream has a state.
//
//   index:      ... source.position ............ prefill_end ...... position
//   token:          source's pending | prompt    | outputs           (pending)
//
// Not thread-safe: made by the thread that submits, then the engine thread's alone.
class Sequence {
 public:
  using Clock = std::chrono::steady_clock;

  // `request` has passed CheckRequest; `eos_ids` are the model's usable end-of-sequence ids.
  // INVALID_ARGUMENT for stop strings or a text tail that TextStream refuses.
  static absl::StatusOr<std::unique_ptr<Sequence>> Create(StreamId id, EngineRequest request,
                                                          std::unique_ptr<StreamSink> sink,
                                                          const Tokenizer* tokenizer,
                                                          std::span<const int32_t> eos_ids);

  StreamId id() const { return id_; }
  // Without source and prompt: they have moved into the sequence.
  const EngineRequest& request() const { return request_; }
  StreamSink& sink() { return *sink_; }

  bool has_source() const { return has_source_; }
  uint64_t source_position() const { return source_position_; }
  uint64_t position() const { return position_; }
  int32_t pending_token() const { return TokenAt(position_).id; }
  uint64_t output_tokens() const { return output_tokens_; }
  // Tokens to be consumed before the first one is sampled, or, with max_tokens 0, in all.
  uint64_t prefill_tokens() const { return prefill_end_ - source_position_; }
  bool in_prefill() const { return position_ < prefill_end_; }
  // Nothing more to consume nor to sample: a stream with max_tokens 0 at its end.
  bool is_complete() const { return request_.max_tokens == 0 && !in_prefill(); }

  // What to run next: up to the end of the prompt.
  RunNeed Need() const;
  // The token at an absolute index that is in memory.
  const TranscriptToken& TokenAt(uint64_t index) const { return thread_[index - first_index_]; }
  // The last tokens of the thread, kRecentTokenWindow at most, up to index `last` inclusive.
  std::span<const TranscriptToken> RecentUpTo(uint64_t last) const;
  void Consume(uint64_t num_tokens) { position_ += num_tokens; }

  // All tokens are consumed, so that the next one must be sampled before the stream has a state.
  bool needs_sample() const { return position_ == first_index_ + thread_.size(); }
  // Ids that can't be sampled now: those that would end the stream before min_tokens.
  std::span<const int32_t> banned_ids() const;
  // Takes the sampled token in: it becomes the pending one. Fills event->text.
  std::optional<Ending> Accept(int32_t token_id, TokenEvent* event);
  // Held-back text that no stop string took.
  std::string FlushText() { return text_ ? text_->Flush() : std::string(); }

  // Which state is to be taken at `position`: for increasing ones, each as often as need be. Asks
  // the sink, once, where it may say no.
  DueState DueAt(uint64_t position);
  // The first position after `position`, and before `end`, at which one is to be taken; `end` when
  // none is. For increasing positions.
  uint64_t NextSnapshot(uint64_t position, uint64_t end);
  uint64_t skipped_snapshots() const { return skipped_snapshots_; }
  // The state here and now but for its slot's bytes. The transcript of one of the chain begins
  // where the one before it ended; one beside it has none.
  StateSnapshot Describe(const ModelIdentity& identity, const StateLayout& layout,
                         bool is_of_chain = true);

  // Kept by the engine loop.
  int32_t slot = -1;  // -1 = none
  HotLease hot;       // where the source's state is, until it first has a slot
  StateBuffer host;   // the source's state, or the one swapped out; else scratch for the next swap
  bool started = false;
  bool is_loading = false;  // its state is on the way into the slot
  bool is_finished = false;
  int32_t num_transfers = 0;  // of its states; the last event waits for them
  HotId hot_id = 0;           // of its end state, where that stays in its slot
  std::vector<TokenLogprob> scores;
  Clock::time_point submit_time, start_time, first_sample_time;

 private:
  Sequence(StreamId id, EngineRequest request, std::unique_ptr<StreamSink> sink);

  void BuildThread(EngineRequest* request);
  bool IsPromptEnd(uint64_t position) const {
    return request_.save.at_prompt_end && position == prompt_last_;
  }
  // What is due at `position` besides the prompt's end, if the sink takes it.
  DueState Ask(uint64_t position);

  StreamId id_;
  EngineRequest request_;
  std::unique_ptr<StreamSink> sink_;
  std::optional<TextStream> text_;
  std::vector<int32_t> stop_ids_;  // these end the stream

  bool has_source_ = false;
  uint64_t source_position_ = 0;
  std::vector<TranscriptToken> thread_;  // the source's recent tokens, the prompt, the outputs
  uint64_t first_index_ = 0;             // of thread_[0]
  uint64_t prompt_last_ = 0;             // index of the last token that was given
  uint64_t prefill_end_ = 0;
  uint64_t position_ = 0;
  uint64_t output_tokens_ = 0;
  uint64_t skipped_snapshots_ = 0;
  uint64_t asked_position_ = UINT64_MAX;  // the last one that the sink was asked about
  DueState answer_ = DueState::kNone;     // what came of it
  uint64_t transcript_begin_ = 0;  // index of the first token that no snapshot's transcript has
};

}  // namespace vivarium::engine
