#include "tests/bench/engine_snapshots.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "engine/runtime/engine.h"
#include "tests/bench/machine_peaks.h"

namespace vivarium::bench {
namespace {

// Counts what a round's streams do; the last one to finish says so.
struct Round {
  explicit Round(int32_t num_streams) : num_running(num_streams) {}
  std::atomic<int32_t> num_running;
  std::atomic<int64_t> num_tokens{0};
  std::atomic<int64_t> num_snapshots{0};
  std::atomic<int64_t> num_errors{0};
  absl::Notification done;
};

class CountingSink final : public engine::StreamSink {
 public:
  explicit CountingSink(Round* round) : round_(round) {}
  void OnStarted(const engine::StartedInfo&) override {}
  void OnToken(engine::TokenEvent) override { ++round_->num_tokens; }
  void OnSnapshot(std::unique_ptr<engine::StateSnapshot>) override { ++round_->num_snapshots; }
  void OnFinished(engine::FinishInfo info) override {
    if (info.reason == engine::FinishReason::kError) ++round_->num_errors;
    if (--round_->num_running == 0) round_->done.Notify();
  }

 private:
  Round* const round_;
};

struct RoundResult {
  double seconds;
  int64_t num_snapshots;
};

absl::StatusOr<RoundResult> RunRound(engine::Engine* engine, int32_t num_streams,
                                     uint32_t num_tokens, uint32_t every_tokens) {
  // Outlives this call should a Submit fail with streams under way: they hold on to it.
  auto* const round = new Round(num_streams);
  const double begin = WallSeconds();
  for (int32_t i = 0; i < num_streams; ++i) {
    engine::EngineRequest request;
    // Of different lengths, so that the streams' snapshots don't all fall into one step.
    for (int32_t t = 0; t < 4 + 3 * (i % 16); ++t) request.prompt.push_back(1 + (i * 13 + t) % 97);
    request.max_tokens = num_tokens;
    request.sampling.temperature = 0.0f;
    request.stop.ignore_eos = true;
    request.save.every_tokens = every_tokens;
    const auto id = engine->Submit(std::move(request), std::make_unique<CountingSink>(round));
    if (!id.ok()) return id.status();
  }
  round->done.WaitForNotification();
  const RoundResult result{WallSeconds() - begin, round->num_snapshots};
  const bool complete =
      round->num_errors == 0 && round->num_tokens == int64_t{num_streams} * num_tokens;
  delete round;
  if (!complete) return absl::InternalError("a stream did not give all of its tokens");
  return result;
}

}  // namespace

absl::StatusOr<SnapshotCost> MeasureSnapshotCost(engine::Model* model, int32_t num_streams,
                                                 uint32_t num_tokens, uint32_t every_tokens,
                                                 int num_rounds) {
  engine::EngineOptions options;
  options.max_slots = num_streams;
  options.max_live_streams = num_streams;
  auto engine = engine::Engine::Create(
      model, nullptr, {std::string(model->fingerprint()), "", std::string(model->numerics_id())},
      options);
  if (!engine.ok()) return engine.status();
  double without = 1e30, with = 1e30;
  SnapshotCost cost{};
  for (int i = 0; i < num_rounds; ++i) {
    const auto plain = RunRound(engine->get(), num_streams, num_tokens, 0);
    if (!plain.ok()) return plain.status();
    const auto saving = RunRound(engine->get(), num_streams, num_tokens, every_tokens);
    if (!saving.ok()) return saving.status();
    if (saving->num_snapshots == 0) return absl::InternalError("no snapshot was taken");
    without = std::min(without, plain->seconds);
    with = std::min(with, saving->seconds);
    cost.num_snapshots = saving->num_snapshots;
  }
  const double tokens = static_cast<double>(num_streams) * num_tokens;
  cost.tokens_per_s_without = tokens / without;
  cost.tokens_per_s_with = tokens / with;
  cost.percent_per_1000 = (with / without - 1.0) * 100.0 * every_tokens / 1000.0;
  return cost;
}

}  // namespace vivarium::bench
