#include "tests/server/fake_engine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace vivarium::server {

using engine::FinishReason;

struct FakeEngine::Stream {
  engine::StreamId id;
  engine::EngineRequest request;
  std::unique_ptr<engine::StreamSink> sink;
  absl::Time submitted;
  bool is_started = false;
  bool is_prefilled = false;
  uint64_t restored = 0;
  uint64_t position = 0;
  uint64_t sum = 0;  // the recurrent state
  int32_t pending = 0;
  uint32_t outputs = 0;
  uint64_t num_skipped = 0;
  std::vector<engine::TranscriptToken> since_snapshot;
  std::vector<engine::TranscriptToken> recent;
};

FakeEngine::FakeEngine(engine::ModelIdentity identity, engine::EngineOptions options)
    : identity_(std::move(identity)), options_(options), thread_([this] { RunLoop(); }) {}

FakeEngine::~FakeEngine() {
  {
    absl::MutexLock lock(&mutex_);
    stops_ = true;
  }
  thread_.join();
}

engine::StateLayout FakeEngine::Layout() {
  engine::StateLayout layout;
  layout.slot_bytes = kFakeSlotBytes;
  layout.parts.push_back({"layers.0.ssm", kernels::DType::kF32, {1, 1, 16}, 0, 64});
  return layout;
}

absl::StatusOr<engine::StreamId> FakeEngine::Submit(engine::EngineRequest request,
                                                    std::unique_ptr<engine::StreamSink> sink) {
  absl::MutexLock lock(&mutex_);
  if (!next_submit_.ok()) return std::exchange(next_submit_, absl::OkStatus());
  if (is_draining_) return absl::UnavailableError("the engine is draining");
  if (request.prompt.empty() && request.source == nullptr) {
    return absl::InvalidArgumentError("prompt is empty; expected tokens where there is no source");
  }
  auto stream = std::make_unique<Stream>();
  stream->id = next_id_++;
  stream->request = std::move(request);
  stream->sink = std::move(sink);
  stream->submitted = absl::Now();
  is_cancelled_[stream->id] = false;
  const engine::StreamId id = stream->id;
  inbox_.push_back(std::move(stream));
  return id;
}

void FakeEngine::Cancel(engine::StreamId id) {
  absl::MutexLock lock(&mutex_);
  const auto it = is_cancelled_.find(id);
  if (it != is_cancelled_.end()) it->second = true;
}

void FakeEngine::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  is_draining_ = true;
  drain_at_ = deadline;
  const auto is_empty = [this]()
                            ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return is_cancelled_.empty(); };
  mutex_.Await(absl::Condition(&is_empty));
}

engine::EngineStats FakeEngine::Stats() const {
  absl::MutexLock lock(&mutex_);
  engine::EngineStats stats = stats_;
  stats.live_streams = static_cast<int32_t>(is_cancelled_.size());
  stats.max_slots = options_.max_slots;
  stats.slot_bytes = kFakeSlotBytes;
  return stats;
}

void FakeEngine::AllowTokens(int num_tokens) {
  absl::MutexLock lock(&mutex_);
  allowed_ = std::max(allowed_, 0) + num_tokens;
}

void FakeEngine::HoldStarts(bool is_held) {
  absl::MutexLock lock(&mutex_);
  holds_starts_ = is_held;
}

void FakeEngine::AllowAllTokens() {
  absl::MutexLock lock(&mutex_);
  allowed_ = -1;
}

void FakeEngine::AwaitOutputTokens(uint64_t num_tokens) {
  absl::MutexLock lock(&mutex_);
  const auto is_reached = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stats_.output_tokens >= num_tokens;
  };
  mutex_.Await(absl::Condition(&is_reached));
}

void FakeEngine::AwaitLiveStreams(int num_streams) {
  absl::MutexLock lock(&mutex_);
  const auto is_reached = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return static_cast<int>(is_cancelled_.size()) == num_streams;
  };
  mutex_.Await(absl::Condition(&is_reached));
}

void FakeEngine::FailNextSubmit(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  next_submit_ = std::move(status);
}

void FakeEngine::FailStreams(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  failure_ = std::move(status);
}

void FakeEngine::RunLoop() {
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (stops_) break;
      live_.splice(live_.end(), inbox_);
    }
    if (!StepAll()) absl::SleepFor(absl::Microseconds(200));
  }
  for (const auto& stream : live_) Finish(*stream, FinishReason::kCancelled, absl::OkStatus());
}

bool FakeEngine::StepAll() {
  bool did_something = false;
  absl::Status failure;
  bool must_drain = false;
  {
    absl::MutexLock lock(&mutex_);
    failure = std::exchange(failure_, absl::OkStatus());
    must_drain = is_draining_ && absl::Now() >= drain_at_;
  }
  for (auto it = live_.begin(); it != live_.end();) {
    Stream& stream = **it;
    bool is_cancelled = false;
    {
      absl::MutexLock lock(&mutex_);
      is_cancelled = is_cancelled_[stream.id];
    }
    bool is_finished = true;
    if (is_cancelled) {
      Finish(stream, FinishReason::kCancelled, absl::OkStatus());
    } else if (!failure.ok()) {
      Finish(stream, FinishReason::kError, failure);
    } else if (absl::Now() >= stream.request.deadline) {
      Finish(stream, FinishReason::kDeadline, absl::OkStatus());
    } else if (must_drain) {
      Finish(stream, FinishReason::kDrained, absl::OkStatus());
    } else {
      const uint32_t before = stream.outputs + (stream.is_started ? 1 : 0);
      is_finished = Step(stream);
      did_something = did_something || is_finished || stream.outputs + 1 != before;
    }
    it = is_finished ? live_.erase(it) : std::next(it);
  }
  return did_something;
}

void FakeEngine::Consume(Stream& stream, int32_t token) {
  ++stream.position;
  stream.sum = (stream.sum * 31 + static_cast<uint64_t>(token) + stream.position) % 1000003;
  absl::MutexLock lock(&mutex_);
  ++stats_.consumed_tokens;
}

void FakeEngine::Prefill(Stream& stream) {
  const engine::EngineRequest& request = stream.request;
  stream.is_prefilled = true;
  std::vector<int32_t> tokens = request.prompt;
  if (request.source) {
    std::memcpy(&stream.sum, request.source->slot.data(), sizeof(stream.sum));
    stream.position = request.source->position;
    stream.recent = request.source->recent_tokens;
    tokens.insert(tokens.begin(), request.source->pending_token);
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 || !request.source) {
      stream.since_snapshot.push_back({tokens[i], false});
      stream.recent.push_back({tokens[i], false});
    }
    stream.pending = tokens[i];
    const bool is_end = i + 1 == tokens.size();
    if (!is_end || !request.save.at_prompt_end) OfferPromptState(stream);
    if (!is_end) Consume(stream, tokens[i]);
  }
  if (request.save.at_prompt_end) stream.sink->OnSnapshot(Snapshot(stream));
}

void FakeEngine::OfferPromptState(Stream& stream) {
  const std::vector<uint64_t>& positions = stream.request.save.prompt_positions;
  if (!std::binary_search(positions.begin(), positions.end(), stream.position) ||
      !stream.sink->AcceptsPromptState(stream.position)) {
    return;
  }
  auto since_snapshot = stream.since_snapshot;
  auto state = Snapshot(stream);
  state->transcript.clear();
  stream.since_snapshot = std::move(since_snapshot);
  stream.sink->OnPromptState(std::move(state));
}

bool FakeEngine::TakePermission() {
  absl::MutexLock lock(&mutex_);
  if (allowed_ == 0) return false;
  if (allowed_ > 0) --allowed_;
  return true;
}

bool FakeEngine::Decode(Stream& stream) {
  const engine::EngineRequest& request = stream.request;
  if (!TakePermission()) return false;
  Consume(stream, stream.pending);
  stream.pending =
      static_cast<int32_t>((stream.sum + request.sampling.seed) % (kFakeVocabSize - 1) + 1);
  stream.since_snapshot.push_back({stream.pending, true});
  stream.recent.push_back({stream.pending, true});
  ++stream.outputs;
  engine::TokenEvent event{stream.pending, absl::StrCat(stream.pending, " "), {}, {}};
  if (request.num_top_logprobs >= 0) {
    event.logprob = engine::TokenLogprob{stream.pending, -0.5f};
    for (int32_t i = 0; i < request.num_top_logprobs; ++i) {
      event.top_logprobs.push_back({i, -1.0f - static_cast<float>(i)});
    }
  }
  stream.sink->OnToken(std::move(event));
  {
    absl::MutexLock lock(&mutex_);
    ++stats_.output_tokens;
  }
  const uint32_t every = request.save.every_tokens;
  if (every > 0 && stream.position % every == 0) {
    if (stream.sink->AcceptsSnapshot(stream.position)) {
      stream.sink->OnSnapshot(Snapshot(stream));
    } else {
      ++stream.num_skipped;
    }
  }
  const auto& stop_ids = request.stop.stop_token_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), stream.pending) != stop_ids.end()) {
    Finish(stream, FinishReason::kStop, absl::OkStatus());
    return true;
  }
  if (stream.outputs < request.max_tokens) return false;
  Finish(stream, FinishReason::kLength, absl::OkStatus());
  return true;
}

bool FakeEngine::Step(Stream& stream) {
  const engine::EngineRequest& request = stream.request;
  if (!stream.is_started) {
    {
      absl::MutexLock lock(&mutex_);
      if (holds_starts_) return false;
    }
    stream.is_started = true;
    stream.restored = request.source ? request.source->position : 0;
    stream.sink->OnStarted({absl::Now() - stream.submitted, stream.restored,
                            request.prompt.size() + (request.source ? 1 : 0)});
    return false;
  }
  if (!stream.is_prefilled) {
    Prefill(stream);
    return false;
  }
  if (request.max_tokens > 0) return Decode(stream);
  Finish(stream, FinishReason::kLength, absl::OkStatus());
  return true;
}

std::unique_ptr<engine::StateSnapshot> FakeEngine::Snapshot(Stream& stream) {
  auto snapshot = std::make_unique<engine::StateSnapshot>();
  snapshot->identity = identity_;
  snapshot->layout = Layout();
  snapshot->slot = engine::StateBuffer(kFakeSlotBytes);
  std::memcpy(snapshot->slot.data(), &stream.sum, sizeof(stream.sum));
  snapshot->position = stream.position;
  snapshot->pending_token = stream.pending;
  snapshot->sampling = stream.request.sampling;
  const size_t num_recent = std::min<size_t>(stream.recent.size(), engine::kRecentTokenWindow);
  snapshot->recent_tokens.assign(stream.recent.end() - static_cast<std::ptrdiff_t>(num_recent),
                                 stream.recent.end());
  snapshot->transcript = std::exchange(stream.since_snapshot, {});
  return snapshot;
}

void FakeEngine::Finish(Stream& stream, FinishReason reason, absl::Status status) {
  engine::FinishInfo info{};
  info.reason = reason;
  info.status = std::move(status);
  info.restored_tokens = stream.restored;
  info.prefill_tokens = stream.request.prompt.size() + (stream.request.source ? 1 : 0);
  info.output_tokens = stream.outputs;
  info.position = stream.position;
  info.skipped_snapshots = stream.num_skipped;
  if (reason == FinishReason::kStop) info.stop_token_id = stream.pending;
  if (stream.request.score) {
    for (size_t i = stream.request.source ? 0 : 1; i < stream.request.prompt.size(); ++i) {
      info.scores.push_back({stream.request.prompt[i], -0.25f});
    }
  }
  const bool ever_ran = stream.is_prefilled;
  if (stream.request.save.at_end && ever_ran && reason != FinishReason::kError) {
    info.state = Snapshot(stream);
  }
  {
    absl::MutexLock lock(&mutex_);
    if (reason == FinishReason::kCancelled) {
      ++stats_.cancelled_streams;
    } else {
      ++stats_.finished_streams;
    }
  }
  stream.sink->OnFinished(std::move(info));
  stream.sink = nullptr;
  absl::MutexLock lock(&mutex_);
  is_cancelled_.erase(stream.id);
}

}  // namespace vivarium::server
