// PrefixReuse: threads that begin from nothing go on from stored states that have consumed the same
// first tokens, and states are stored where prompts part from each other. README.md, "Prefix
// reuse", tells what is promised.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/runtime/state.h"
#include "server/parts.h"
#include "server/prefix_states.h"
#include "server/prompt_memory.h"
#include "server/source_state.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// Fewer tokens are not worth a state: neither to go on from one, nor to store one for so few more.
inline constexpr size_t kMinPrefixTokens = 32;
// States that turn out to be damaged, or deleted in between, before a look-up gives up.
inline constexpr size_t kMaxPrefixAttempts = 4;

// How a look-up ended: a label of metrics.
inline constexpr std::string_view kPrefixHit = "hit";
inline constexpr std::string_view kPrefixNone = "none";        // nothing stored begins so
inline constexpr std::string_view kPrefixShort = "short";      // fewer than kMinPrefixTokens
inline constexpr std::string_view kPrefixInexact = "inexact";  // other numerics, or rounded
inline constexpr std::string_view kPrefixDamaged = "damaged";
inline constexpr std::string_view kPrefixFailed = "failed";
inline constexpr std::string_view kPrefixOff = "off";

// What a prompt is given.
struct PrefixPlan {
  // The state to go on from, its pending token and its recent ones the prompt's; no snapshot: none.
  SourceState source;
  std::string explanation;  // what was reused, or exactly why nothing was; for people
  // Where the engine is to hand out a state for later prompts.
  std::optional<uint64_t> branch_position;
};

// Thread-safe.
class PrefixReuse {
 public:
  // `parts` must outlive it and be complete before the first call.
  explicit PrefixReuse(Parts* parts) : parts_(parts), states_(parts) {}

  // For a prompt from nothing. `is_wanted`: the request's own word. Blocks on the store; never
  // fails: what goes wrong is explained, counted, and the prompt is computed.
  PrefixPlan Plan(const std::string& tenant, std::span<const int32_t> prompt,
                  std::optional<bool> is_wanted);

  // The right to store a state at a branch; nothing while another of the tenant is being stored.
  // Never blocks.
  std::optional<HoldSet::Hold> BeginSave(const std::string& tenant);
  // Stores it: PrefixStates::Save. A failure is logged and counted only. Blocks on the store.
  void Save(const std::string& tenant, std::unique_ptr<engine::StateSnapshot> state,
            const std::vector<int32_t>& tokens, HoldSet::Hold hold);

  // Drops what is stored for reuse: a call that saves needs the quota. False: there was nothing.
  bool GiveBack(const std::string& tenant) { return states_.GiveBack(tenant); }

 private:
  // Fills source, id and explanation. Returns how it ended.
  std::string_view FindSource(const std::string& tenant, std::span<const int32_t> prompt,
                              PrefixPlan* plan);

  Parts* const parts_;
  PrefixStates states_;
  PromptMemory prompts_;
};

}  // namespace vivarium::server
