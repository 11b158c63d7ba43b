// Engine: continuous batching of many streams over one model. Start here for the runtime.
//
// One thread, the engine's, owns the model and the slot pool and runs at its own pace:
//   drain the inbox -> plan (Scheduler) -> load/swap states -> forward -> sample -> accept -> emit.
// Everybody else hands it values: requests in, events out through each stream's StreamSink.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/runtime/hot_states.h"
#include "engine/runtime/sampling_params.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

class Model;
class Tokenizer;

using StreamId = uint64_t;

enum class FinishReason : uint8_t {
  kStop = 0,       // end-of-sequence, stop id or stop string
  kLength = 1,     // max_tokens reached
  kCancelled = 2,  // Cancel()
  kDeadline = 3,   // the request's deadline passed
  kDrained = 4,    // Drain()
  kError = 5,      // FinishInfo::status says what
};

// When states of a stream are handed out (any combination).
struct SavePolicy {
  bool at_end =
      false;  // in FinishInfo::state: also on cancel, deadline and drain, at the point reached
  bool at_prompt_end = false;  // before the prompt's last token is consumed: it is pending
  // At absolute positions that are multiples of it, where StreamSink::AcceptsSnapshot; 0 = off.
  uint32_t every_tokens = 0;
  // Besides, at these positions in the prompt, where StreamSink::AcceptsPromptState: states beside
  // the stream's chain, for other streams to go on from. Ascending, each after the source's
  // position and not after that of the prompt's last token; at most kMaxPromptPositions. Where a
  // snapshot of the chain is due as well, that one alone.
  std::vector<uint64_t> prompt_positions = {};
};
inline constexpr size_t kMaxPromptPositions = 16;

struct StopCriteria {
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;    // at most kMaxStopTokenIds; act like end-of-sequence
  std::vector<std::string> stop_strings;  // see TextStream; their tokens are consumed by the state
};
inline constexpr size_t kMaxStopTokenIds = 64;

// Kinds of work: generating, or scoring given tokens.
struct EngineRequest {
  std::unique_ptr<StateSnapshot> source;  // null = the zero state
  // Where there is one, `source` has no bytes: they are the leased state's, of the engine's own
  // layout. Unless it is kept, its slot becomes the stream's, and nobody can lease it again.
  HotLease hot;
  bool keeps_hot = true;
  // Tokens to consume after the source's pending token. May be empty only with a source.
  std::vector<int32_t> prompt;
  // Score: log-probabilities of `prompt` are wanted (max_tokens must be 0). With a source, of all
  // of prompt; without, of prompt[1..].
  bool score = false;
  SamplingParams sampling;
  StopCriteria stop;
  uint32_t max_tokens = 0;  // 0 = only consume the prompt, up to its last token, which is pending
  uint32_t min_tokens = 0;  // end-of-sequence and stop ids can't be sampled before; <= max_tokens
  int32_t num_top_logprobs = -1;  // -1 = no logprobs; 0 = the chosen token's; n = and the n best
  SavePolicy save;
  int32_t priority = 0;  // higher first; FIFO within a priority
  absl::Time deadline = absl::InfiniteFuture();
};

struct TokenLogprob {
  int32_t token_id;
  float logprob;  // natural logarithm, of the softmax over the usable ids of the raw logits
};

// One generated token and what it adds to the text.
struct TokenEvent {
  int32_t token_id;
  std::string text;  // text that became certain; may be empty, or cover earlier tokens
  std::optional<TokenLogprob> logprob;
  std::vector<TokenLogprob> top_logprobs;  // best first
};

struct StartedInfo {
  absl::Duration queue_time;  // from Submit to the first plan that took the stream
  uint64_t restored_tokens;   // the source's position: tokens that are not computed again
  uint64_t prefill_tokens;    // tokens that will be consumed before the first sample
};

struct FinishInfo {
  FinishReason reason;
  absl::Status status;                   // not OK for kError only
  std::string flushed_text;              // held-back text that no stop string took
  std::string stop;                      // the stop string that matched, or ""
  std::optional<int32_t> stop_token_id;  // the end-of-sequence or stop id that ended the stream
  uint64_t restored_tokens;
  uint64_t prefill_tokens;     // tokens really fed before the first sample (engine's counter)
  uint64_t output_tokens;      // sampled tokens
  uint64_t position;           // tokens consumed, the source's included
  uint64_t skipped_snapshots;  // every_tokens ones that the sink did not accept
  std::unique_ptr<StateSnapshot> state;  // when asked for and the stream ever ran
  HotId hot_id = 0;  // of `state`, where it stays in its slot too: see Engine::NameHot
  std::vector<TokenLogprob> scores;  // EngineRequest::score
  absl::Duration prefill_time, decode_time;
};

// The device has failed, for good: UNAVAILABLE, naming the fault, and IsDeviceFault.
absl::Status DeviceFaultError(const std::string& fault);
bool IsDeviceFault(const absl::Status& status);

// Where a stream's events go. Called by the engine's thread, never concurrently; must not block and
// must not call the Engine, except Cancel. Order: OnStarted at most once, then OnTokens and
// OnSnapshots, then OnFinished exactly once. Destroyed after OnFinished, on the engine's thread.
class StreamSink {
 public:
  virtual ~StreamSink() = default;
  virtual void OnStarted(const StartedInfo& info) = 0;
  virtual void OnToken(TokenEvent event) = 0;
  // Asked once for each position at which an every_tokens snapshot is due, before it is taken, in
  // order. True: it comes, unless the stream ends with an error. False: it is skipped, and not even
  // copied: where storing lags. The states at the prompt's end and at the end are never skipped.
  virtual bool AcceptsSnapshot(uint64_t /*position*/) { return true; }
  // Asked once for each of SavePolicy::prompt_positions, likewise. False: it is not taken; nothing
  // counts it as skipped.
  virtual bool AcceptsPromptState(uint64_t /*position*/) { return false; }
  // at_prompt_end and every_tokens snapshots, when their bytes have arrived on the host: tokens of
  // later positions may have come before. `transcript` covers the tokens since the stream's
  // previous snapshot (else since the source).
  virtual void OnSnapshot(std::unique_ptr<StateSnapshot> snapshot) = 0;
  // A state at one of prompt_positions. Its transcript is empty, and the stream's next snapshot has
  // these tokens all the same.
  virtual void OnPromptState(std::unique_ptr<StateSnapshot> /*state*/) {}
  virtual void OnFinished(FinishInfo info) = 0;
};

// EngineOptions::max_slots: as many as fit the device's memory (slot_plan.h).
inline constexpr int32_t kAutoSlots = -1;

struct EngineOptions {
  int32_t max_slots = 8;  // device-resident states of streams, or kAutoSlots
  // More slots: a step takes a free one for each snapshot inside a prefill chunk, until it is
  // copied out; when none is free, the chunk ends where the snapshot is due.
  int32_t snapshot_slots = 2;
  int32_t max_live_streams = 256;  // running or swapped out; the host memory for swapped states is
                                   // (max_live_streams) * slot_bytes at most
  int32_t max_queued_streams = 1024;  // waiting; one more is RESOURCE_EXHAUSTED
  // Prompt tokens of streams that have not started; one that would bring more is
  // RESOURCE_EXHAUSTED, unless it is alone.
  int64_t max_queued_tokens = 1 << 22;
  int32_t max_num_batched_tokens = 512;  // rows of one step; <= the model's max_batch_tokens
  int32_t prefill_chunk_tokens = 128;    // prompt tokens of one stream in one step
  // Prompt tokens of one step in which some stream generates: bounds how long the others' next
  // token waits for a new prompt.
  int32_t prefill_tokens_beside_decode = 64;
  int32_t time_slice_tokens = 64;       // tokens that a stream keeps its slot for at least
  uint32_t max_tokens_limit = 1 << 20;  // EngineRequest::max_tokens at most
  size_t max_prompt_tokens = 1 << 20;   // EngineRequest::prompt at most
};

// What an EngineOptions may ask for at most; max_slots also at most the model's max_batch_tokens
// and max_logit_rows, and at most max_live_streams and max_num_batched_tokens.
inline constexpr int32_t kMaxSlots = 1 << 14;
inline constexpr int32_t kMaxSnapshotSlots = 256;
inline constexpr int32_t kMaxLiveStreams = 1 << 16;
inline constexpr int32_t kMaxQueuedStreams = 1 << 20;
inline constexpr int64_t kMaxQueuedTokens = int64_t{1} << 30;
inline constexpr int32_t kMaxChunkTokens = 1 << 20;   // prefill_*, time_slice_tokens
inline constexpr int64_t kMaxStreamTokens = 1 << 24;  // max_tokens_limit, max_prompt_tokens

// Counters since Create (totals) and gauges. "No recomputation" is proved from these.
struct EngineStats {
  uint64_t steps = 0;
  uint64_t consumed_tokens = 0;  // rows that went through the model
  uint64_t prefill_tokens = 0;   // of these, given by clients (pending tokens of sources included)
  uint64_t decode_tokens = 0;    // of these, sampled before
  uint64_t output_tokens = 0;    // sampled
  uint64_t restored_tokens = 0;  // positions of the sources
  uint64_t swaps_out = 0, swaps_in = 0;
  uint64_t finished_streams = 0, cancelled_streams = 0, rejected_streams = 0;
  int32_t queued_streams = 0;  // gauges from here
  int64_t queued_tokens = 0;   // see EngineOptions::max_queued_tokens
  int32_t live_streams = 0;
  int32_t used_slots = 0;  // those of states on their way to the host included, hot ones not
  int32_t max_slots = 0;
  int32_t hot_slots = 0;       // that keep the state of an ended stream while nobody needs them
  uint64_t hot_resumes = 0;    // streams whose source was in a slot (total, as the next two)
  uint64_t hot_evictions = 0;  // hot states whose slot was needed
  uint64_t hot_spills = 0;     // of these, leased ones: they went on in host memory
  uint64_t slot_bytes = 0, pool_bytes = 0, host_swap_bytes = 0;
  uint64_t weight_bytes = 0, activation_bytes = 0;         // as the model holds them on the device
  uint64_t device_free_bytes = 0, device_total_bytes = 0;  // Backend::Memory
};

// What an engine has to say besides its streams' events.
class EngineEvents {
 public:
  virtual ~EngineEvents() = default;
  // Every stream has ended with `status`, which IsDeviceFault, and so does every Submit from now
  // on. Once, on the engine's thread; must not block nor call the Engine.
  virtual void OnFault(const absl::Status& status) = 0;
};

// Thread-safe. Destruction cancels what runs and joins the engine's thread; every sink has had its
// OnFinished by then.
class Engine {
 public:
  // `model` and `tokenizer` must outlive the engine; `tokenizer` may be null: then requests can
  // have no stop strings and events no text. `identity` goes into every snapshot.
  // `events` may be null. RESOURCE_EXHAUSTED with the arithmetic when the slots don't fit the
  // memory that is free (slot_plan.h), before any of it is taken;
  // INVALID_ARGUMENT naming a bad option.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(Model* model, const Tokenizer* tokenizer,
                                                        ModelIdentity identity,
                                                        const EngineOptions& options,
                                                        EngineEvents* events = nullptr);
  virtual ~Engine() = default;

  // Cheap, synchronous checks, then into the inbox. On error the sink is destroyed without a call.
  // INVALID_ARGUMENT naming field, value and limit; FAILED_PRECONDITION, naming both sides, for a
  // source of another model, tokenizer or layout (one that differs in its parts' dtypes alone, f32
  // and bf16, is converted: state_convert.h); RESOURCE_EXHAUSTED when the queue is full (streams or
  // tokens); UNAVAILABLE when draining, or after a fault of the device (IsDeviceFault).
  virtual absl::StatusOr<StreamId> Submit(EngineRequest request,
                                          std::unique_ptr<StreamSink> sink) = 0;
  // The stream finishes with kCancelled within two steps (OnFinished comes when the bytes of its
  // state have arrived on the host; other streams' steps go on meanwhile); no-op for an unknown or
  // finished stream.
  virtual void Cancel(StreamId id) = 0;
  // No new streams from now on; those running go on until `deadline`, then finish with kDrained.
  // Returns when all are finished.
  virtual void Drain(absl::Time deadline) = 0;
  // The end states of streams stay in their slots for as long as nobody needs these: never is a
  // stream refused or held up for their sake. Once a state has a name it can be leased under it.
  virtual void NameHot(HotId /*id*/, const std::string& /*name*/) {}
  // For EngineRequest::hot; on nothing when no slot has that state any more.
  virtual HotLease LeaseHot(const std::string& /*name*/) { return {}; }
  virtual EngineStats Stats() const = 0;
  virtual const EngineOptions& options() const = 0;
};

}  // namespace vivarium::engine
