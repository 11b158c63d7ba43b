// The engine's invariants on random schedules, driven step by step on one thread: whatever the
// options, the neighbours and the order of events, each stream does what it would do alone.
#include "engine/runtime/engine_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/runtime/engine_harness.h"
#include "tests/support/late_copy_backend.h"

namespace vivarium::engine {
namespace {

using ::vivarium::testing::FakeBackend;
using ::vivarium::testing::FakeModel;
using ::vivarium::testing::LateCopyBackend;

// A state that came out of some stream, and the whole thread that it stands for.
struct SavedState {
  StateSnapshot state;
  Thread thread;
  std::string hot_name;  // under which its slot may still have it
};

struct Stream {
  StreamId id;
  std::shared_ptr<Recorded> record = std::make_shared<Recorded>();
  Expected expected;
  SavePolicy save;
  bool is_cancelled = false;
  bool is_checked = false;
};

class Schedule {
 public:
  // With late copies, states are on their way for a random number of steps.
  Schedule(uint64_t seed, bool has_late_copies)
      : random_(seed),
        backend_(has_late_copies ? std::make_unique<LateCopyBackend>(seed)
                                 : std::make_unique<FakeBackend>()) {
    FakeModel::Options model_options;
    options_.max_slots = Pick(1, 4);
    options_.max_live_streams = options_.max_slots + Pick(0, 5);
    options_.max_num_batched_tokens = options_.max_slots + Pick(0, 12);
    options_.prefill_chunk_tokens = Pick(1, 9);
    options_.prefill_tokens_beside_decode = Pick(1, 9);
    options_.time_slice_tokens = Pick(1, 6);
    model_options.max_batch_tokens = options_.max_num_batched_tokens;
    model_options.max_logit_rows = options_.max_slots + Pick(0, 8);
    num_slots_ = options_.max_slots;
    num_slots_ += Pick(0, 3);
    model_options.max_slots = num_slots_;
    model_ = std::make_unique<FakeModel>(backend_.get(), model_options);
    auto pool = StatePool::Create(backend_.get(), model_->state_layout().slot_bytes, num_slots_);
    EXPECT_TRUE(pool.ok());
    auto sampler =
        TokenSampler::Create(backend_.get(), model_->config().vocab_size,
                             model_->config().padded_vocab_size, model_->max_logit_rows());
    EXPECT_TRUE(sampler.ok());
    loop_ = std::make_unique<EngineLoop>(model_.get(), FakeIdentity(), *std::move(pool),
                                         *std::move(sampler), options_);
  }

  void Run() {
    const int num_events = Pick(4, 60);
    for (int i = 0; i < num_events && !::testing::Test::HasFailure(); ++i) {
      const int dice = Pick(0, 99);
      if (dice < 30) {
        Submit();
      } else if (dice < 36 && !streams_.empty()) {
        Cancel(streams_[Pick(0, static_cast<int>(streams_.size()) - 1)]);
      } else if (dice < 40) {  // as a server does while it plans a stream
        if (!saved_.empty()) leases_.push_back(LeaseOne(nullptr));
        if (leases_.size() > 4) leases_.erase(leases_.begin());
      } else if (dice < 41) {
        loop_->FinishExpired(absl::UnixEpoch() + absl::Seconds(++now_s_));
      } else {
        Step();
      }
      CheckFinished();
    }
    if (Pick(0, 3) == 0) loop_->FinishAll(FinishReason::kDrained);
    if (Pick(0, 1) == 0) leases_.clear();
    loop_->DeliverFinished();
    constexpr int kMaxSteps = 4000;  // far beyond all work submitted: a stream starves
    int num_steps = 0;
    while (!loop_->idle() && ++num_steps < kMaxSteps) Step();
    EXPECT_LT(num_steps, kMaxSteps) << "a stream starves";
    CheckFinished();
    CheckEnd();
  }

  int num_streams() const { return static_cast<int>(streams_.size()); }
  EngineStats stats() const { return loop_->stats(); }

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  // Of a saved state, a recent one more often; which one.
  HotLease LeaseOne(const SavedState** chosen) {
    const int last = static_cast<int>(saved_.size()) - 1;
    const SavedState& saved = saved_[Pick(Pick(0, 1) == 0 ? 0 : std::max(0, last - 3), last)];
    if (chosen != nullptr) *chosen = &saved;
    return loop_->hot_states()->Lease(saved.hot_name);
  }

  EngineRequest RandomRequest(Thread* source_thread) {
    EngineRequest request;
    if (!saved_.empty() && Pick(0, 2) > 0) {
      const SavedState* saved = nullptr;
      HotLease lease = LeaseOne(&saved);
      request.source = std::make_unique<StateSnapshot>(CopySnapshot(saved->state));
      *source_thread = saved->thread;
      if (lease && Pick(0, 3) > 0) {
        request.source->slot = StateBuffer();
        request.hot = std::move(lease);
        request.keeps_hot = Pick(0, 1) == 0;
      }
    }
    const int prompt_size = Pick(request.source ? 0 : 1, Pick(0, 3) == 0 ? 40 : 6);
    for (int i = 0; i < prompt_size; ++i) request.prompt.push_back(Pick(0, 60));
    request.score = prompt_size > 0 && Pick(0, 9) == 0;
    request.max_tokens = request.score || Pick(0, 9) == 0 ? 0 : Pick(1, 25);
    request.min_tokens = Pick(0, 4) == 0 ? Pick(0, static_cast<int>(request.max_tokens)) : 0;
    request.sampling.temperature = Pick(0, 2) == 0 ? 0.0f : 1.0f;
    request.sampling.repetition_penalty = Pick(0, 2) == 0 ? 1.5f : 1.0f;
    request.sampling.frequency_penalty = Pick(0, 2) == 0 ? 0.25f : 0.0f;
    request.sampling.seed = random_();
    request.stop.ignore_eos = Pick(0, 3) == 0;
    if (Pick(0, 3) == 0) request.stop.stop_token_ids = {Pick(1, 60), Pick(1, 60)};
    request.num_top_logprobs = Pick(-1, 2);
    request.save.at_end = Pick(0, 2) > 0;
    request.save.at_prompt_end = Pick(0, 2) == 0;
    request.save.every_tokens = Pick(0, 2) == 0 ? Pick(1, 9) : 0;
    request.priority = Pick(-1, 1);
    if (Pick(0, 9) == 0) request.deadline = absl::UnixEpoch() + absl::Seconds(now_s_ + 1);
    return request;
  }

  void Submit() {
    Stream stream;
    Thread source_thread;
    EngineRequest request = RandomRequest(&source_thread);
    stream.id = streams_.size() + 1;
    stream.save = request.save;
    stream.expected = Predict(*model_, source_thread, request);
    auto sequence = Sequence::Create(stream.id, std::move(request),
                                     std::make_unique<RecordingSink>(stream.record), nullptr,
                                     model_->config().eos_token_ids);
    ASSERT_TRUE(sequence.ok());
    loop_->Add(*std::move(sequence));
    streams_.push_back(std::move(stream));
  }

  void Cancel(Stream& stream) {
    stream.is_cancelled = true;
    loop_->Finish(stream.id, FinishReason::kCancelled);
    loop_->DeliverFinished();
    if (backend_->copies_overlap()) return;  // the last event may have to wait
    EXPECT_EQ(stream.record->num_finished, 1) << "finished now, or had been before";
  }

  void Step() {
    loop_->Step();
    loop_->DeliverFinished();
    const EngineStats stats = loop_->stats();
    EXPECT_LE(stats.used_slots + stats.hot_slots, num_slots_);
    EXPECT_LE(stats.live_streams, options_.max_live_streams);
  }

  void CheckFinished() {
    loop_->DeliverFinished();
    for (Stream& stream : streams_) {
      if (stream.is_checked || !stream.record->finished) continue;
      stream.is_checked = true;
      EXPECT_TRUE(stream.record->sink_destroyed);
      ExpectStream(*model_, *stream.record, stream.expected, stream.save);
      FinishInfo& info = *stream.record->finished;
      if (info.reason == FinishReason::kCancelled) {
        EXPECT_TRUE(stream.is_cancelled);
      }
      for (auto& snapshot : stream.record->snapshots) Keep(stream, std::move(snapshot), 0);
      Keep(stream, std::move(info.state), info.hot_id);
    }
  }

  void Keep(const Stream& stream, std::unique_ptr<StateSnapshot> state, HotId hot_id) {
    if (state == nullptr) {
      EXPECT_EQ(hot_id, 0u);
      return;
    }
    std::string name = absl::StrCat("state ", saved_.size());
    if (Pick(0, 9) > 0) loop_->hot_states()->Name(hot_id, name);
    const Thread& thread = stream.expected.thread;
    Thread own(thread.begin(), thread.begin() + state->position + 1);
    saved_.push_back({std::move(*state), std::move(own), std::move(name)});
  }

  void CheckEnd() {
    leases_.clear();
    uint64_t restored = 0, output = 0, consumed = 0;
    for (const Stream& stream : streams_) {
      ASSERT_EQ(stream.record->num_finished, 1);
      const FinishInfo& info = *stream.record->finished;
      if (stream.record->started) restored += info.restored_tokens;
      output += info.output_tokens;
      consumed += info.position - info.restored_tokens;
    }
    const EngineStats stats = loop_->stats();
    EXPECT_EQ(stats.used_slots, 0) << "a slot leaked";
    EXPECT_LE(stats.hot_slots, num_slots_);
    EXPECT_EQ(stats.live_streams, 0);
    EXPECT_EQ(stats.queued_streams, 0);
    EXPECT_EQ(stats.host_swap_bytes, 0u);
    EXPECT_EQ(stats.finished_streams, streams_.size());
    EXPECT_EQ(stats.restored_tokens, restored);
    EXPECT_EQ(stats.output_tokens, output);
    EXPECT_EQ(stats.consumed_tokens, consumed) << "no token is computed twice";
    EXPECT_EQ(stats.consumed_tokens, static_cast<uint64_t>(model_->num_rows));
    EXPECT_EQ(stats.prefill_tokens + stats.decode_tokens, stats.consumed_tokens);
    EXPECT_EQ(backend_->num_allocations, 2) << "device memory is allocated at start-up only";
  }

  std::mt19937_64 random_;
  const std::unique_ptr<FakeBackend> backend_;
  EngineOptions options_;
  int32_t num_slots_ = 0;
  std::unique_ptr<FakeModel> model_;
  std::unique_ptr<EngineLoop> loop_;
  std::vector<Stream> streams_;
  std::vector<SavedState> saved_;
  std::vector<HotLease> leases_;
  int64_t now_s_ = 0;
};

// VIVARIUM_LONG_TESTS=1 runs ten times as many.
void RunSchedules(bool has_late_copies) {
  const int num_schedules = std::getenv("VIVARIUM_LONG_TESTS") != nullptr ? 100000 : 10000;
  int64_t num_streams = 0;
  EngineStats totals;
  for (int seed = 0; seed < num_schedules; ++seed) {
    SCOPED_TRACE(seed);
    Schedule schedule(seed, has_late_copies);
    schedule.Run();
    num_streams += schedule.num_streams();
    totals.hot_resumes += schedule.stats().hot_resumes;
    totals.hot_evictions += schedule.stats().hot_evictions;
    totals.hot_spills += schedule.stats().hot_spills;
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(num_streams, 5 * num_schedules);
  EXPECT_GT(totals.hot_resumes, static_cast<uint64_t>(num_schedules) / 4);
  EXPECT_GT(totals.hot_evictions, totals.hot_spills);
  EXPECT_GT(totals.hot_spills, static_cast<uint64_t>(num_schedules) / 50);
}

TEST(EngineLoop, EachStreamDoesWhatItWouldDoAloneOnAnySchedule) { RunSchedules(false); }

TEST(EngineLoop, AlsoWhileStatesAreOnTheirWay) { RunSchedules(true); }

}  // namespace
}  // namespace vivarium::engine
