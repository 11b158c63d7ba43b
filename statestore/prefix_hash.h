// The rolling hash by which states are found for prompts that begin with their tokens: of a model
// (fingerprint and tokenizer) and of a sequence of tokens, one step a token, so that a state's
// continues its parent's. A hint only: equal hashes are never taken for equal tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/runtime/state.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

// Of no tokens.
uint64_t PrefixSeed(const engine::ModelIdentity& identity);

// Of one token more. The finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable
// Pseudorandom Number Generators") over hash and token.
constexpr uint64_t ExtendPrefix(uint64_t hash, int32_t token) {
  hash = hash * 0x9e3779b97f4a7c15 + static_cast<uint32_t>(token) + 1;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111eb;
  return hash ^ hash >> 31;
}

// [p] is the hash of the first p tokens; tokens.size() of them, so without that of all.
std::vector<uint64_t> ProperPrefixHashes(const engine::ModelIdentity& identity,
                                         std::span<const int32_t> tokens);

// Of all tokens that the state has consumed. `parent` may be null: unknown. Nothing where those
// tokens are not all known: a state whose history doesn't reach back to its first token, or whose
// parent is another model's or not the one that its transcript goes on from.
std::optional<uint64_t> PrefixHashOf(const StateManifest& manifest, const StateManifest* parent);

// The way from a state back to its beginning, to see whether it has consumed exactly the first
// `position` tokens of a prompt: Visit its manifest, then that of each next_id().
class PrefixWalk {
 public:
  // `query` must outlive it; position < query.tokens.size().
  PrefixWalk(const PrefixQuery& query, uint64_t position)
      : query_(query), prefix_(query.tokens.first(position)), expected_position_(position) {}

  // True when next_id() is to be visited. False when the way is at its end: at the beginning
  // (is_complete), or where something doesn't fit.
  bool Visit(const StateManifest& manifest);
  const StateId& next_id() const { return next_id_; }
  // Every token was compared and is the prompt's.
  bool is_complete() const { return is_complete_; }
  // Why the state may not have the numbers, bit for bit, that the prompt would give; "" = it has.
  const std::string& inexact() const { return inexact_; }

 private:
  const PrefixQuery& query_;
  const std::span<const int32_t> prefix_;
  uint64_t expected_position_;
  size_t num_visited_ = 0;
  StateId next_id_;
  bool is_complete_ = false;
  std::string inexact_;
};

// Takes the state `id` into `match`, if it is longer than what is there: as usable, or (`inexact`
// says why) not.
void AddCandidate(const StateId& id, uint64_t position, const std::string& inexact,
                  PrefixMatch* match);

}  // namespace vivarium::statestore
