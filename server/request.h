// Requests as values, checked, without protobuf: what convert.h makes of the wire's messages.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "engine/text/chat.h"
#include "server/sampling.h"
#include "statestore/state_store.h"

namespace vivarium::server {

inline constexpr uint32_t kMinSaveEveryTokens = 16;
inline constexpr int32_t kMaxPriority = 100;
inline constexpr size_t kMaxScoreStates = 64;
inline constexpr size_t kMaxTextBytes = size_t{8} << 20;
inline constexpr absl::Duration kMaxTtl = absl::Hours(24 * 366 * 100);

// What to consume.
struct Input {
  enum class Kind { kNone, kText, kTokens, kChat };
  Kind kind = Kind::kNone;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<engine::ChatMessage> messages;
  bool parse_special = false;

  // Nothing new is said.
  bool empty() const { return text.empty() && token_ids.empty() && messages.empty(); }
};

// What is saved, and what becomes of the session's head (generation.proto, SavePolicy).
struct SavePlan {
  enum class Head {
    kStands,       // no session, or one that is only read
    kToPromptEnd,  // moves, when the stream ends, to the state at the prompt's end
    kToEnd,
  };
  bool at_end = false;
  bool at_prompt_end = false;
  uint32_t every_tokens = 0;
  uint32_t keep_snapshots = 1;  // the newest: snapshot_thinning.h
  statestore::StateCodec codec = statestore::StateCodec::kRaw;
  Head head = Head::kStands;

  bool saves_anything() const { return at_end || at_prompt_end || every_tokens > 0; }
};

struct GenerateParams {
  std::string state_id;  // the source; "" = the session's head, or nothing
  bool fresh = false;    // the source is nothing, although `session` exists
  std::string session;
  std::string expected_etag;
  Input input;
  std::optional<bool> prefix_reuse;  // absent: as the server was told

  SamplingOverrides sampling;
  int32_t num_top_logprobs = -1;  // as in EngineRequest
  engine::StopCriteria stop;
  uint32_t max_tokens = 0;
  uint32_t min_tokens = 0;
  int32_t priority = 0;

  SavePlan save;
  absl::Duration ttl = absl::InfiniteDuration();
  statestore::Labels labels;
  std::string request_id;
  std::string request_hash;  // of everything the client sent
  absl::Time deadline = absl::InfiniteFuture();
};

struct ScoreParams {
  std::vector<std::string> state_ids;
  Input input;
  absl::Time deadline = absl::InfiniteFuture();
};

// Bounds that depend on the server.
struct RequestLimits {
  int64_t vocab_size = 0;  // token ids are below it
  int32_t default_max_tokens = 0;
  int32_t max_tokens = 0;
  int32_t max_prompt_tokens = 0;
  absl::Duration default_ttl = absl::InfiniteDuration();
  statestore::StateCodec default_codec = statestore::StateCodec::kRaw;
  uint32_t default_save_every_tokens = 0;  // of streams that save their end
  uint32_t default_keep_snapshots = 8;
};

}  // namespace vivarium::server
