// From a checked request to what the engine runs: session, source state, prompt, sampling.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "server/parts.h"
#include "server/request.h"
#include "server/session_manager.h"
#include "server/source_state.h"

namespace vivarium::server {

// Whether a source state was used, else why not: a label of metrics.
inline constexpr std::string_view kReuseRestored = "restored";
inline constexpr std::string_view kReusePrefix = "prefix";
inline constexpr std::string_view kReuseNoSource = "no_source";
inline constexpr std::string_view kReuseNewSession = "new_session";
inline constexpr std::string_view kReuseFresh = "fresh";

struct GeneratePlan {
  engine::EngineRequest request;
  std::optional<LeasedSession> session;  // leased where its head will move
  SourceLineage source;
  std::string
      source_state_id;  // `source`'s, or that of the state whose prefix is reused; "" = none
  // Of a prompt that goes on from a reused prefix: its tokens up to the source's pending one. What
  // is saved has no parent and begins with them, as if they had been computed.
  std::vector<engine::TranscriptToken> reused_tokens;
  // Where the engine is asked for a state for later prompts: the prompt's tokens up to the pending
  // one there; empty = nowhere.
  std::vector<int32_t> branch_tokens;
  StateTier tier = StateTier::kNone;  // where the source's bytes came from
  std::string_view reuse;             // kReuse...
  std::string reuse_explanation;      // the same, for people
  bool numerics_changed = false;
  bool session_created = false;
};

// The bounds of requests to this server.
RequestLimits LimitsOf(const Parts& parts);

// Blocks on the store. Errors: NOT_FOUND (state), ABORTED (session busy, stale etag),
// FAILED_PRECONDITION (other model or tokenizer; text without a tokenizer; chat without a format),
// INVALID_ARGUMENT, DATA_LOSS and the store's others.
absl::StatusOr<GeneratePlan> PlanGenerate(const Parts& parts, const GenerateParams& params);

// The ids of `input`, after `source` (null: at position 0, where BOS goes if the tokenizer wants
// one). For chats the generation role's prefix comes last.
absl::StatusOr<std::vector<int32_t>> EncodeInput(const Parts& parts, const Input& input,
                                                 const engine::StateSnapshot* source);

}  // namespace vivarium::server
