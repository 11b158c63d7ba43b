#include "statestore/prefix_hash.h"

#include <xxhash.h>

#include "absl/strings/str_cat.h"

namespace vivarium::statestore {

uint64_t PrefixSeed(const engine::ModelIdentity& identity) {
  const uint64_t model = XXH3_64bits(identity.fingerprint.data(), identity.fingerprint.size());
  return XXH3_64bits_withSeed(identity.tokenizer_hash.data(), identity.tokenizer_hash.size(),
                              model);
}

std::vector<uint64_t> ProperPrefixHashes(const engine::ModelIdentity& identity,
                                         std::span<const int32_t> tokens) {
  std::vector<uint64_t> hashes;
  hashes.reserve(tokens.size());
  uint64_t hash = PrefixSeed(identity);
  for (const int32_t token : tokens) {
    hashes.push_back(hash);
    hash = ExtendPrefix(hash, token);
  }
  return hashes;
}

std::optional<uint64_t> PrefixHashOf(const StateManifest& manifest, const StateManifest* parent) {
  const std::vector<engine::TranscriptToken>& transcript = manifest.transcript;
  const uint64_t num_own = transcript.size();  // the pending one included
  if (num_own > 0 && transcript.back().id != manifest.pending_token) return std::nullopt;
  uint64_t hash = 0;
  if (manifest.parent_id.empty()) {
    if (num_own != manifest.position + 1) return std::nullopt;
    hash = PrefixSeed(manifest.identity);
  } else {
    const bool goes_on = parent != nullptr && parent->prefix_hash.has_value() &&
                         parent->identity.fingerprint == manifest.identity.fingerprint &&
                         parent->identity.tokenizer_hash == manifest.identity.tokenizer_hash &&
                         num_own <= manifest.position &&
                         parent->position == manifest.position - num_own &&
                         (num_own > 0 || parent->pending_token == manifest.pending_token);
    if (!goes_on) return std::nullopt;
    if (num_own == 0) return *parent->prefix_hash;
    hash = ExtendPrefix(*parent->prefix_hash, parent->pending_token);
  }
  for (uint64_t i = 0; i + 1 < num_own; ++i) hash = ExtendPrefix(hash, transcript[i].id);
  return hash;
}

bool PrefixWalk::Visit(const StateManifest& manifest) {
  const std::vector<engine::TranscriptToken>& transcript = manifest.transcript;
  const uint64_t num_own = transcript.size();
  const bool is_first = manifest.parent_id.empty();
  const bool fits = num_visited_ <= kMaxPrefixAncestors && manifest.prefix_hash.has_value() &&
                    manifest.position == expected_position_ &&
                    manifest.identity.fingerprint == query_.identity.fingerprint &&
                    manifest.identity.tokenizer_hash == query_.identity.tokenizer_hash &&
                    (is_first ? num_own == manifest.position + 1 : num_own <= manifest.position);
  if (!fits) return false;
  // The pending token, the last, is at `position`: an ancestor's was consumed by its child.
  const uint64_t begin = manifest.position + 1 - num_own;
  for (uint64_t i = 0; i < num_own && begin + i < prefix_.size(); ++i) {
    if (transcript[i].id != prefix_[begin + i]) return false;
  }
  if (inexact_.empty() && manifest.identity.numerics_id != query_.identity.numerics_id) {
    inexact_ = absl::StrCat("its numerics are ", manifest.identity.numerics_id, ", here they are ",
                            query_.identity.numerics_id);
  }
  // A rounded ancestor counts where the state inherited it, not where both are of one stream.
  if (num_visited_ == 0 && manifest.is_lossy()) inexact_ = "it was rounded when it was stored";
  ++num_visited_;
  is_complete_ = is_first;
  next_id_ = manifest.parent_id;
  expected_position_ = manifest.position - (is_first ? 0 : num_own);
  return !is_first;
}

void AddCandidate(const StateId& id, uint64_t position, const std::string& inexact,
                  PrefixMatch* match) {
  if (inexact.empty()) {
    if (position <= match->position) return;
    match->id = id;
    match->position = position;
  } else if (position > match->inexact_position) {
    match->inexact_id = id;
    match->inexact_position = position;
    match->inexact_reason = inexact;
  }
  // What is shorter than the one that is used is nothing to tell.
  if (match->inexact_position <= match->position) {
    match->inexact_id.clear();
    match->inexact_position = 0;
    match->inexact_reason.clear();
  }
}

}  // namespace vivarium::statestore
