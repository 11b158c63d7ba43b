// A device that fails in the middle: every stream ends once, in order, and nothing wrong is handed
// out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/runtime/engine_fixture.h"
#include "tests/support/late_copy_backend.h"

namespace vivarium::engine {
namespace {

using ::testing::HasSubstr;

struct CountingEvents : EngineEvents {
  void OnFault(const absl::Status& status) override {
    ++num_faults;
    last = status;
    heard.Notify();
  }
  int num_faults = 0;
  absl::Status last;
  absl::Notification heard;
};

// Streams of every kind over few slots, on a device that fails at forward `fail_at`.
class FaultyEngine {
 public:
  FaultyEngine(uint64_t seed, int64_t fail_at) : backend_(seed) {
    model_.on_forward = [this, fail_at](const Batch&) {
      if (model_.num_forwards >= fail_at) backend_.Fail("uncorrectable memory error");
    };
    auto engine = Engine::Create(&model_, nullptr, FakeIdentity(), options_, &events_);
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  void Submit(EngineRequest request) {
    Stream stream;
    stream.save = request.save;
    stream.expected = Predict(model_, {}, request);
    const auto id =
        engine_->Submit(std::move(request), std::make_unique<RecordingSink>(stream.record));
    if (id.ok()) {
      streams_.push_back(std::move(stream));
    } else {
      EXPECT_EQ(id.status().code(), absl::StatusCode::kUnavailable);  // failed already
    }
  }

  void Check() {
    events_.heard.WaitForNotification();
    for (const Stream& stream : streams_) {
      stream.record->done.WaitForNotification();
      const Recorded& record = *stream.record;
      EXPECT_EQ(record.num_finished, 1);
      EXPECT_TRUE(record.in_order);
      const FinishInfo& info = *record.finished;
      if (info.reason == FinishReason::kError) {
        EXPECT_EQ(info.status.code(), absl::StatusCode::kUnavailable);
        EXPECT_THAT(std::string(info.status.message()), HasSubstr("uncorrectable memory error"));
        EXPECT_EQ(info.state, nullptr);
        ++num_failed_;
      }
      std::vector<int32_t> outputs = stream.expected.output_ids();
      ASSERT_LE(record.tokens.size(), outputs.size());
      outputs.resize(record.tokens.size());
      EXPECT_EQ(record.token_ids(), outputs);
      std::optional<uint64_t> parent;
      for (const auto& snapshot : record.snapshots) {
        ExpectState(model_, *snapshot, stream.expected.thread, parent);
        parent = snapshot->position;
      }
      if (info.state != nullptr) ExpectState(model_, *info.state, stream.expected.thread, parent);
    }
    EXPECT_EQ(events_.num_faults, 1);
    EXPECT_EQ(events_.last.code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(IsDeviceFault(events_.last));
    const auto late = std::make_shared<Recorded>();
    const auto refused =
        engine_->Submit(MakeRequest({1}, 1), std::make_unique<RecordingSink>(late));
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(IsDeviceFault(refused.status()));
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("uncorrectable memory error"));
    EXPECT_EQ(engine_->Stats().used_slots, 0);
    engine_->Drain(absl::Now());
    engine_ = nullptr;
  }

  int num_failed() const { return num_failed_; }

 private:
  struct Stream {
    std::shared_ptr<Recorded> record = std::make_shared<Recorded>();
    Expected expected;
    SavePolicy save;
  };
  testing::LateCopyBackend backend_;
  EngineOptions options_{.max_slots = 3, .prefill_chunk_tokens = 8, .time_slice_tokens = 4};
  testing::FakeModel model_{&backend_, TestEngine::Fit(options_, testing::FakeModel::Options())};
  CountingEvents events_;
  std::unique_ptr<Engine> engine_;
  std::vector<Stream> streams_;
  int num_failed_ = 0;
};

TEST(EngineFault, EndsEveryStreamOnceWhateverItIsDoing) {
  int num_failed = 0;
  for (int64_t fail_at = 0; fail_at < 40; ++fail_at) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      SCOPED_TRACE(::testing::Message() << "forward " << fail_at << ", seed " << seed);
      FaultyEngine engine(seed, fail_at);
      for (int i = 0; i < 8; ++i) {
        EngineRequest request = MakeRequest(Tokens(1 + 5 * i, i), 30);
        request.save = {.at_end = i % 2 == 0,
                        .at_prompt_end = i % 3 == 0,
                        .every_tokens = static_cast<uint32_t>(i % 4 == 1 ? 3 : 0)};
        engine.Submit(std::move(request));
      }
      engine.Check();
      if (HasFailure()) return;
      num_failed += engine.num_failed();
    }
  }
  EXPECT_GT(num_failed, 200);
}

}  // namespace
}  // namespace vivarium::engine
