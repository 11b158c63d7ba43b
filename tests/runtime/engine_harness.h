// What the engine's tests share: a sink that records, and an oracle that says what a stream must
// do.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "engine/runtime/engine.h"
#include "tests/support/fake_backend.h"
#include "tests/support/fake_model.h"

namespace vivarium::engine {

// Everything that a stream's sink was told. Read it after `done`, or on the engine's thread.
struct Recorded {
  std::optional<StartedInfo> started;
  std::vector<TokenEvent> tokens;
  std::vector<std::unique_ptr<StateSnapshot>> snapshots;
  std::vector<std::unique_ptr<StateSnapshot>> prompt_states;
  std::vector<uint64_t> asked_positions;              // AcceptsSnapshot's
  std::function<bool(uint64_t)> accepts = {};         // its answer; none = true
  std::vector<uint64_t> asked_prompt_positions;       // AcceptsPromptState's
  std::function<bool(uint64_t)> accepts_prompt = {};  // its answer; none = true
  std::optional<FinishInfo> finished;
  int num_finished = 0;
  bool in_order = true;  // started, then tokens and snapshots, then finished
  bool sink_destroyed = false;
  absl::Notification done;  // the sink is destroyed

  std::vector<int32_t> token_ids() const;
  std::string text() const;  // of all events and of the end
};

class RecordingSink : public StreamSink {
 public:
  explicit RecordingSink(std::shared_ptr<Recorded> record) : record_(std::move(record)) {}
  ~RecordingSink() override;
  void OnStarted(const StartedInfo& info) override;
  void OnToken(TokenEvent event) override;
  bool AcceptsSnapshot(uint64_t position) override;
  bool AcceptsPromptState(uint64_t position) override;
  void OnSnapshot(std::unique_ptr<StateSnapshot> snapshot) override;
  void OnPromptState(std::unique_ptr<StateSnapshot> state) override;
  void OnFinished(FinishInfo info) override;

 private:
  std::shared_ptr<Recorded> record_;
};

using Thread = std::vector<TranscriptToken>;  // from the thread's very first token

std::vector<int32_t> IdsOf(std::span<const TranscriptToken> tokens);

// What must come out of a request, computed from scratch for each token, one stream by itself. The
// thread is the source's (up to its pending token), the prompt, and all that is generated.
struct Expected {
  Thread thread;
  bool has_source = false;
  uint64_t source_position = 0;
  size_t num_given = 0;  // tokens of the thread before the first output
  FinishReason reason;
  std::optional<int32_t> stop_token_id;

  std::vector<int32_t> output_ids() const;
};
Expected Predict(const testing::FakeModel& model, const Thread& source_thread,
                 const EngineRequest& request);

// Every field of `state` against the thread it claims to be of; `parent_position` is that of the
// state before it, none for the first one of a thread.
void ExpectState(const testing::FakeModel& model, const StateSnapshot& state, const Thread& thread,
                 std::optional<uint64_t> parent_position);
// A whole finished stream: tokens, snapshots, ending, final state.
void ExpectStream(const testing::FakeModel& model, const Recorded& record, const Expected& expected,
                  const SavePolicy& save);

// A deep copy, the source included.
EngineRequest CopyRequest(const EngineRequest& request);

ModelIdentity FakeIdentity();

}  // namespace vivarium::engine
