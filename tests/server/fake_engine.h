// FakeEngine: an Engine whose "model" is arithmetic, for tests of the services: the next token is a
// function of everything consumed and of the seed, so a lost or doubled token shows. Tests decide
// how many tokens it may generate, and so what the server meets in which order.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/runtime/engine.h"

namespace vivarium::server {

inline constexpr int64_t kFakeVocabSize = 1000;
inline constexpr uint64_t kFakeSlotBytes = 64;

class FakeEngine final : public engine::Engine {
 public:
  FakeEngine(engine::ModelIdentity identity, engine::EngineOptions options);
  ~FakeEngine() override;

  absl::StatusOr<engine::StreamId> Submit(engine::EngineRequest request,
                                          std::unique_ptr<engine::StreamSink> sink) override;
  void Cancel(engine::StreamId id) override;
  void Drain(absl::Time deadline) override;
  engine::EngineStats Stats() const override;
  const engine::EngineOptions& options() const override { return options_; }

  // Tokens that may be sampled from now on, over all streams; the first call ends the freedom.
  void AllowTokens(int num_tokens) ABSL_LOCKS_EXCLUDED(mutex_);
  // While held, submitted streams wait.
  void HoldStarts(bool is_held) ABSL_LOCKS_EXCLUDED(mutex_);
  void AllowAllTokens() ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitOutputTokens(uint64_t num_tokens) ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitLiveStreams(int num_streams) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next Submit answers this.
  void FailNextSubmit(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // Every live stream ends with it.
  void FailStreams(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  static engine::StateLayout Layout();

 private:
  struct Stream;

  void RunLoop();
  bool StepAll();  // false when nothing could be done
  // True when it has finished.
  bool Step(Stream& stream);
  void Prefill(Stream& stream);
  void OfferPromptState(Stream& stream);
  bool Decode(Stream& stream);
  void Consume(Stream& stream, int32_t token);
  void Finish(Stream& stream, engine::FinishReason reason, absl::Status status);
  std::unique_ptr<engine::StateSnapshot> Snapshot(Stream& stream);
  bool TakePermission() ABSL_LOCKS_EXCLUDED(mutex_);

  const engine::ModelIdentity identity_;
  const engine::EngineOptions options_;
  mutable absl::Mutex mutex_;
  std::list<std::unique_ptr<Stream>> inbox_ ABSL_GUARDED_BY(mutex_);
  std::map<engine::StreamId, bool> is_cancelled_ ABSL_GUARDED_BY(mutex_);  // of live streams
  engine::StreamId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool holds_starts_ ABSL_GUARDED_BY(mutex_) = false;
  int allowed_ ABSL_GUARDED_BY(mutex_) = -1;  // -1 = all
  absl::Status next_submit_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  engine::EngineStats stats_ ABSL_GUARDED_BY(mutex_);
  absl::Time drain_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stops_ ABSL_GUARDED_BY(mutex_) = false;
  std::list<std::unique_ptr<Stream>> live_;  // the thread's
  std::thread thread_;
};

}  // namespace vivarium::server
