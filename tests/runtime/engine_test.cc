// The threaded engine: what may enter, and how streams end.
#include "engine/runtime/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <random>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "tests/runtime/engine_fixture.h"

namespace vivarium::engine {
namespace {

using ::testing::HasSubstr;

// Holds the engine's thread in Forward until it is opened.
class Gate {
 public:
  void Wait() {
    absl::MutexLock lock(&mutex_);
    ++num_arrived_;
    changed_.SignalAll();
    while (!open_) changed_.Wait(&mutex_);
  }
  void AwaitArrival() {
    absl::MutexLock lock(&mutex_);
    while (num_arrived_ == 0) changed_.Wait(&mutex_);
  }
  void Open() {
    absl::MutexLock lock(&mutex_);
    open_ = true;
    changed_.SignalAll();
  }

 private:
  absl::Mutex mutex_;
  absl::CondVar changed_;
  int num_arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

constexpr uint32_t kEndless = 1 << 20;

TEST(Engine, TellsAStreamsWholeLife) {
  TestEngine test;
  EngineRequest request = MakeRequest(Tokens(10), 5);
  request.save = {.at_end = true, .at_prompt_end = true, .every_tokens = 4};
  const Expected expected = Predict(test.model, {}, request);
  const auto record = test.Run(CopyRequest(request));
  ExpectStream(test.model, *record, expected, request.save);
  EXPECT_EQ(record->started->prefill_tokens, 10u);
  EXPECT_EQ(record->finished->prefill_tokens, 10u);
  EXPECT_GE(record->finished->prefill_time, absl::ZeroDuration());
  EXPECT_GE(record->finished->decode_time, absl::ZeroDuration());
  const EngineStats stats = test.engine->Stats();
  EXPECT_EQ(stats.prefill_tokens, 10u);
  EXPECT_EQ(stats.decode_tokens, 4u);
  EXPECT_EQ(stats.output_tokens, 5u);
  EXPECT_EQ(stats.consumed_tokens, 14u);
  EXPECT_EQ(stats.finished_streams, 1u);
  EXPECT_EQ(stats.used_slots, 0);
  EXPECT_EQ(stats.pool_bytes,
            stats.slot_bytes * (stats.max_slots + test.engine->options().snapshot_slots));
}

TEST(Engine, EndOfSequenceStaysPendingAndIsFedOnResume) {
  TestEngine test({}, {.eos_token_ids = {7}});
  test.model.edit_logits = [](uint64_t num_tokens, std::vector<float>* logits) {
    (*logits)[7] = num_tokens == 6 ? 100.0f : -100.0f;
  };
  EngineRequest request = MakeRequest(Tokens(3), 50);
  request.stop.ignore_eos = false;
  request.save.at_end = true;
  const Expected expected = Predict(test.model, {}, request);
  auto record = test.Run(CopyRequest(request));
  ExpectStream(test.model, *record, expected, request.save);
  EXPECT_EQ(record->finished->stop_token_id, 7);
  EXPECT_EQ(record->finished->position, 6u);
  EXPECT_EQ(record->finished->state->pending_token, 7);
  EXPECT_EQ(record->tokens.back().token_id, 7);

  EngineRequest rest = MakeRequest({9}, 3);
  rest.source = std::move(record->finished->state);
  const Expected after = Predict(test.model, expected.thread, rest);
  ExpectStream(test.model, *test.Run(std::move(rest)), after, {});
}

TEST(Engine, MinTokensAndIgnoreEos) {
  TestEngine test({}, {.eos_token_ids = {7}});
  test.model.edit_logits = [](uint64_t, std::vector<float>* logits) { (*logits)[7] = 100.0f; };
  EngineRequest request = MakeRequest(Tokens(3), 20);
  request.stop.ignore_eos = false;
  request.min_tokens = 4;
  auto record = test.Run(CopyRequest(request));
  EXPECT_EQ(record->tokens.size(), 5u) << "four others, then the end of sequence";
  for (int i = 0; i < 4; ++i) EXPECT_NE(record->tokens[i].token_id, 7);
  EXPECT_EQ(record->finished->stop_token_id, 7);
  request.stop.ignore_eos = true;
  record = test.Run(std::move(request));
  EXPECT_EQ(record->token_ids(), std::vector<int32_t>(20, 7));
  EXPECT_EQ(record->finished->reason, FinishReason::kLength);
}

TEST(Engine, PaddedRowsAreNeverSampled) {  // the fake model's padded rows have the largest logits
  TestEngine test;
  EngineRequest request = MakeRequest(Tokens(3), 500);
  request.sampling.temperature = kMaxTemperature;
  for (const int32_t id : test.Run(std::move(request))->token_ids()) EXPECT_LT(id, 61);
}

TEST(Engine, BrokenLogitsEndTheirStreamAlone) {
  for (const bool score : {false, true}) {
    TestEngine test;
    test.model.edit_logits = [](uint64_t num_tokens, std::vector<float>* logits) {
      if (num_tokens == 40) (*logits)[5] = std::numeric_limits<float>::quiet_NaN();
    };
    EngineRequest broken = MakeRequest(Tokens(score ? 60 : 30), score ? 0 : 60);
    broken.score = score;
    broken.save.at_end = true;
    auto neighbour = test.Submit(MakeRequest(Tokens(5), 25));
    const auto record = test.Run(std::move(broken));
    EXPECT_EQ(record->finished->reason, FinishReason::kError);
    EXPECT_EQ(record->finished->status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(record->finished->status.message()), HasSubstr("token id 5"));
    EXPECT_EQ(record->finished->state, nullptr);
    neighbour.record->done.WaitForNotification();
    EXPECT_EQ(neighbour.record->finished->reason, FinishReason::kLength);
    EXPECT_EQ(test.engine->Stats().used_slots, 0);
  }
}

TEST(Engine, CancelEndsWithinTwoStepsAtTheStateReached) {
  for (const int prompt_size : {5, 500}) {  // in the middle of decode, and of prefill
    TestEngine test({.max_num_batched_tokens = 16, .prefill_chunk_tokens = 16});
    Gate gate;
    std::atomic<int> num_steps{0};
    test.model.on_forward = [&](const Batch&) {
      if (++num_steps == 10) gate.Wait();
    };
    EngineRequest request = MakeRequest(Tokens(prompt_size), 200);
    request.save.at_end = true;
    const Expected expected = Predict(test.model, {}, request);
    auto submitted = test.Submit(CopyRequest(request));
    gate.AwaitArrival();
    test.engine->Cancel(submitted.id);
    test.engine->Cancel(submitted.id);  // twice is as good as once
    gate.Open();
    submitted.record->done.WaitForNotification();
    EXPECT_LE(num_steps, 12);
    EXPECT_EQ(submitted.record->finished->reason, FinishReason::kCancelled);
    EXPECT_GT(submitted.record->finished->position, 0u);
    ExpectStream(test.model, *submitted.record, expected, request.save);
    test.engine->Cancel(submitted.id);  // finished
    test.engine->Cancel(123456);        // unknown
    EXPECT_EQ(test.engine->Stats().cancelled_streams, 1u);
  }
}

TEST(Engine, CancelOrDeadlineInTheQueueGivesNoState) {
  TestEngine test({.max_slots = 1, .max_live_streams = 1});
  auto running = test.Submit(MakeRequest(Tokens(3), kEndless));
  EngineRequest waiting = MakeRequest(Tokens(3), 5);
  waiting.save.at_end = true;
  auto cancelled = test.Submit(CopyRequest(waiting));
  waiting.deadline = absl::Now() + absl::Milliseconds(20);
  auto expired = test.Submit(std::move(waiting));
  test.engine->Cancel(cancelled.id);
  cancelled.record->done.WaitForNotification();
  expired.record->done.WaitForNotification();
  EXPECT_EQ(cancelled.record->finished->reason, FinishReason::kCancelled);
  EXPECT_EQ(expired.record->finished->reason, FinishReason::kDeadline);
  for (const auto& stream : {cancelled, expired}) {
    EXPECT_FALSE(stream.record->started);
    EXPECT_EQ(stream.record->finished->state, nullptr);
  }
  test.engine->Cancel(running.id);
  running.record->done.WaitForNotification();
}

TEST(Engine, ADeadlineEndsARunningStreamWithItsState) {
  TestEngine test;
  std::shared_ptr<Recorded> record;
  // On a busy machine the deadline may pass before the first step: then once more, with more time.
  for (int64_t patience_ms = 30; record == nullptr || !record->started; patience_ms *= 4) {
    ASSERT_LT(patience_ms, 60000);
    EngineRequest request = MakeRequest(Tokens(3), kEndless);
    request.save.at_end = true;
    request.deadline = absl::Now() + absl::Milliseconds(patience_ms);
    record = test.Run(std::move(request));
    ASSERT_EQ(record->finished->reason, FinishReason::kDeadline);
  }
  ASSERT_NE(record->finished->state, nullptr);
  EXPECT_EQ(record->finished->state->position, record->finished->position);
}

TEST(Engine, MoreLiveStreamsThanSlotsTakeTurns) {
  TestEngine test({.max_slots = 2, .max_live_streams = 20, .time_slice_tokens = 8});
  std::vector<TestEngine::Submitted> streams;
  std::vector<Expected> expected;
  for (int i = 0; i < 20; ++i) {
    EngineRequest request = MakeRequest(Tokens(10 + i, i), 100);
    request.save.at_end = true;
    expected.push_back(Predict(test.model, {}, request));
    streams.push_back(test.Submit(std::move(request)));
  }
  for (int i = 0; i < 20; ++i) {
    streams[i].record->done.WaitForNotification();
    ExpectStream(test.model, *streams[i].record, expected[i], {.at_end = true});
  }
  const EngineStats stats = test.engine->Stats();
  EXPECT_GT(stats.swaps_out, 20u);
  EXPECT_EQ(stats.swaps_out, stats.swaps_in);
  EXPECT_EQ(stats.host_swap_bytes, 0u);
  uint64_t consumed = 0;
  for (const auto& stream : streams) consumed += stream.record->finished->position;
  EXPECT_EQ(stats.consumed_tokens, consumed) << "no recomputation";
  EXPECT_EQ(test.backend.num_allocations, 2);
}

TEST(Engine, TheQueueIsBounded) {
  TestEngine test({.max_slots = 1, .max_live_streams = 1, .max_queued_streams = 4});
  auto running = test.Submit(MakeRequest(Tokens(3), kEndless));
  while (test.engine->Stats().live_streams == 0) std::this_thread::yield();
  std::vector<TestEngine::Submitted> queued;
  for (int i = 0; i < 4; ++i) queued.push_back(test.Submit(MakeRequest(Tokens(3), 5)));
  EXPECT_EQ(test.engine->Stats().queued_streams, 4);
  const absl::Status refusal = test.Refusal(MakeRequest(Tokens(3), 5));
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("at most 4"));
  EXPECT_EQ(test.engine->Stats().rejected_streams, 1u);
  test.engine->Cancel(running.id);
  for (const auto& stream : queued) {
    stream.record->done.WaitForNotification();
    EXPECT_EQ(stream.record->finished->reason, FinishReason::kLength);
  }
}

TEST(Engine, TheQueueIsBoundedByTokensToo) {
  TestEngine test(
      {.max_slots = 1, .max_live_streams = 1, .max_queued_streams = 4, .max_queued_tokens = 10});
  auto running = test.Submit(MakeRequest(Tokens(3), kEndless));
  while (test.engine->Stats().live_streams == 0) std::this_thread::yield();
  EXPECT_EQ(test.engine->Stats().queued_tokens, 0);
  auto alone = test.Submit(MakeRequest(Tokens(11), 5));  // above the limit, but nobody waits
  EXPECT_EQ(test.engine->Stats().queued_tokens, 11);
  EXPECT_EQ(test.Refusal(MakeRequest(Tokens(1), 5)).code(), absl::StatusCode::kResourceExhausted);
  test.engine->Cancel(alone.id);
  alone.record->done.WaitForNotification();
  EXPECT_EQ(test.engine->Stats().queued_tokens, 0);
  std::vector<TestEngine::Submitted> queued;
  queued.push_back(test.Submit(MakeRequest(Tokens(4), 5)));
  const absl::Status refusal = test.Refusal(MakeRequest(Tokens(7), 5));
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("4 prompt tokens wait, and 7 more"));
  queued.push_back(test.Submit(MakeRequest(Tokens(6), 5)));
  EXPECT_EQ(test.engine->Stats().queued_tokens, 10);
  test.engine->Cancel(running.id);
  for (const auto& stream : queued) {
    stream.record->done.WaitForNotification();
    EXPECT_EQ(stream.record->finished->reason, FinishReason::kLength);
  }
  EXPECT_EQ(test.engine->Stats().queued_tokens, 0);
}

TEST(Engine, DrainLetsFinishWhatCanAndKeepsTheRest) {
  TestEngine test;
  auto brief = test.Submit(MakeRequest(Tokens(3), 5));
  test.engine->Drain(absl::InfiniteFuture());
  EXPECT_TRUE(brief.record->sink_destroyed);
  EXPECT_EQ(brief.record->finished->reason, FinishReason::kLength);
  const absl::Status refusal = test.Refusal(MakeRequest(Tokens(3), 5));
  EXPECT_EQ(refusal.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(IsDeviceFault(refusal));

  TestEngine other;
  EngineRequest request = MakeRequest(Tokens(3), kEndless);
  request.save.at_end = true;
  auto endless = other.Submit(CopyRequest(request));
  while (other.engine->Stats().output_tokens < 3) std::this_thread::yield();
  other.engine->Drain(absl::Now() + absl::Milliseconds(10));
  EXPECT_EQ(endless.record->finished->reason, FinishReason::kDrained);
  ASSERT_NE(endless.record->finished->state, nullptr);
  request.max_tokens = static_cast<uint32_t>(endless.record->tokens.size());
  ExpectStream(other.model, *endless.record, Predict(other.model, {}, request), request.save);
  other.engine->Drain(absl::InfinitePast());  // again, with nothing left
}

TEST(Engine, DestructionCancelsWhatRuns) {
  std::vector<std::shared_ptr<Recorded>> records;
  {
    TestEngine test({.max_slots = 2, .max_live_streams = 3});
    for (int i = 0; i < 10; ++i) {
      records.push_back(test.Submit(MakeRequest(Tokens(3), kEndless)).record);
    }
  }
  for (const auto& record : records) {
    EXPECT_TRUE(record->sink_destroyed);
    EXPECT_EQ(record->num_finished, 1);
    EXPECT_EQ(record->finished->reason, FinishReason::kCancelled);
  }
}

// Streams come, go, are cancelled by their own sinks and by others, while the engine drains.
TEST(Engine, ExactlyOneFinishUnderConcurrentSubmitCancelAndDrain) {
  constexpr int kNumRounds = 10, kNumThreads = 4, kNumPerThread = 40;
  for (int round = 0; round < kNumRounds; ++round) {
    TestEngine test(
        {.max_slots = 3, .max_live_streams = 8, .max_queued_streams = 16, .time_slice_tokens = 5});
    std::vector<std::vector<std::shared_ptr<Recorded>>> accepted(kNumThreads);
    std::vector<std::thread> threads;
    std::atomic<int> num_done{0};
    for (int t = 0; t < kNumThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(round * 100 + t);
        for (int i = 0; i < kNumPerThread; ++i) {
          EngineRequest request = MakeRequest(Tokens(1 + random() % 20), random() % 30);
          request.save.at_end = random() % 2 == 0;
          const auto record = std::make_shared<Recorded>();
          const auto id =
              test.engine->Submit(std::move(request), std::make_unique<RecordingSink>(record));
          if (!id.ok()) continue;
          accepted[t].push_back(record);
          if (random() % 3 == 0) test.engine->Cancel(*id);
          if (random() % 4 == 0) (void)test.engine->Stats();
        }
        ++num_done;
      });
    }
    std::thread drainer([&] {
      // When the engine's thread is slow, the queue refuses most, and fewer than 30 ever finish.
      while (test.engine->Stats().finished_streams < 30 && num_done < kNumThreads) {
        std::this_thread::yield();
      }
      test.engine->Drain(absl::Now() + absl::Milliseconds(round % 3));
    });
    for (std::thread& thread : threads) thread.join();
    drainer.join();
    size_t num_accepted = 0;
    for (const auto& records : accepted) {
      for (const auto& record : records) {
        ASSERT_TRUE(record->done.HasBeenNotified()) << "Drain returned too early";
        EXPECT_EQ(record->num_finished, 1);
        EXPECT_TRUE(record->in_order);
        ++num_accepted;
      }
    }
    const EngineStats stats = test.engine->Stats();
    EXPECT_EQ(stats.finished_streams, num_accepted);
    EXPECT_EQ(stats.finished_streams + stats.rejected_streams,
              static_cast<uint64_t>(kNumThreads * kNumPerThread));
    EXPECT_EQ(stats.used_slots, 0);
    EXPECT_EQ(stats.live_streams, 0);
    EXPECT_EQ(stats.queued_streams, 0);
  }
}

TEST(Engine, CancelFromTheSinkItself) {
  class SelfCancel : public RecordingSink {
   public:
    SelfCancel(std::shared_ptr<Recorded> record, Engine* engine, std::atomic<StreamId>* id)
        : RecordingSink(std::move(record)), engine_(engine), id_(id) {}
    void OnToken(TokenEvent event) override {
      RecordingSink::OnToken(std::move(event));
      engine_->Cancel(*id_);
    }

   private:
    Engine* engine_;
    std::atomic<StreamId>* id_;
  };
  TestEngine test;
  std::atomic<StreamId> id{0};
  const auto record = std::make_shared<Recorded>();
  id = *test.engine->Submit(MakeRequest(Tokens(3), kEndless),
                            std::make_unique<SelfCancel>(record, test.engine.get(), &id));
  record->done.WaitForNotification();
  EXPECT_EQ(record->finished->reason, FinishReason::kCancelled);
}

}  // namespace
}  // namespace vivarium::engine
