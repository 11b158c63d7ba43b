#include "server/prefix_reuse.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/metrics.h"

namespace vivarium::server {
namespace {

using engine::StateSnapshot;
using statestore::PrefixMatch;

// The state as it would be had it been computed from this prompt: its numbers follow from the first
// tokens alone, the rest from which token comes next and from what was said before.
void MakePrompts(std::span<const int32_t> prompt, StateSnapshot* source) {
  const uint64_t position = source->position;
  source->pending_token = prompt[position];
  const uint64_t num_recent = std::min<uint64_t>(position + 1, engine::kRecentTokenWindow);
  source->recent_tokens.clear();
  for (uint64_t i = position + 1 - num_recent; i <= position; ++i) {
    source->recent_tokens.push_back({prompt[i], /*is_output=*/false});
  }
  source->text_tail.clear();
  source->transcript.clear();
}

// Why nothing that was found will do.
std::string_view ExplainMiss(const PrefixMatch& match, std::string* explanation) {
  if (match.inexact_position >= kMinPrefixTokens) {
    absl::StrAppend(explanation, "state ", match.inexact_id, " has consumed the prompt's first ",
                    match.inexact_position,
                    " tokens, but not bit for bit as here: ", match.inexact_reason);
    return kPrefixInexact;
  }
  const uint64_t longest = std::max(match.position, match.inexact_position);
  if (longest > 0) {
    absl::StrAppend(explanation, "the longest stored prefix of the prompt, state ",
                    match.position > 0 ? match.id : match.inexact_id, ", has ", longest,
                    " tokens, fewer than ", kMinPrefixTokens);
    return kPrefixShort;
  }
  absl::StrAppend(explanation, "no stored state has consumed the prompt's first tokens");
  return kPrefixNone;
}

}  // namespace

PrefixPlan PrefixReuse::Plan(const std::string& tenant, std::span<const int32_t> prompt,
                             std::optional<bool> is_wanted) {
  PrefixPlan plan;
  const bool is_on = is_wanted.value_or(parts_->options.prefix_reuse == "on");
  if (!is_on || prompt.size() <= kMinPrefixTokens) {
    plan.explanation = is_on       ? absl::StrCat("the prompt has ", prompt.size(),
                                                  " tokens, and prefixes are reused from ",
                                                  kMinPrefixTokens, " on, with a token after them")
                       : is_wanted ? "the request turned prefix reuse off"
                                   : "prefix reuse is turned off (--prefix-reuse)";
    parts_->metrics->CountPrefixLookup(is_on ? kPrefixShort : kPrefixOff);
    return plan;
  }
  const absl::Time begin = absl::Now();
  parts_->metrics->CountPrefixLookup(FindSource(tenant, prompt, &plan));
  parts_->metrics->ObservePrefixLookup(absl::Now() - begin);
  const StateSnapshot* const source = plan.source.snapshot.get();
  if (source != nullptr) {
    parts_->metrics->CountPrefixTokens(source->position);
    states_.NoteUse(tenant, plan.source.lineage.state_id);
  }
  if (parts_->options.prefix_max_states == 0 || !states_.MayStore(tenant)) return plan;
  const size_t num_reused = source != nullptr ? source->position : 0;
  const size_t branch = std::min(prompts_.Remember(tenant, prompt), prompt.size() - 1);
  if (branch >= num_reused + kMinPrefixTokens) {
    plan.branch_position = branch;
    absl::StrAppend(&plan.explanation, "; an earlier prompt has the same first ", branch,
                    " tokens: a state there is to be stored for later ones");
  }
  return plan;
}

std::string_view PrefixReuse::FindSource(const std::string& tenant, std::span<const int32_t> prompt,
                                         PrefixPlan* plan) {
  statestore::PrefixQuery query{parts_->model.identity, prompt, {}};
  std::string skipped;
  std::string_view miss = kPrefixFailed;
  const auto skip_damaged = [&](const statestore::StateId& id) {
    query.skip.push_back(id);
    absl::StrAppend(&skipped, "; state ", id, " is damaged and was skipped");
    parts_->log->warn("event=damaged_prefix state={}", id);
    miss = kPrefixDamaged;
  };
  for (size_t attempt = 0; attempt < kMaxPrefixAttempts; ++attempt) {
    auto match = parts_->store->FindPrefix(tenant, query);
    if (!match.ok()) {
      plan->explanation =
          absl::StrCat("looking for stored prefixes failed: ", match.status().message(), skipped);
      return kPrefixFailed;
    }
    for (const statestore::StateId& id : match->damaged) skip_damaged(id);
    if (match->position < kMinPrefixTokens) {
      const std::string_view why = ExplainMiss(*match, &plan->explanation);
      absl::StrAppend(&plan->explanation, skipped);
      return miss == kPrefixDamaged && why == kPrefixNone ? miss : why;
    }
    auto source = LoadSource(*parts_, match->id);
    if (source.ok()) {
      MakePrompts(prompt, source->snapshot.get());
      plan->source = *std::move(source);
      plan->explanation = absl::StrCat(
          "reused the prompt's first ", match->position, " tokens, which state ", match->id,
          " has consumed: they are not computed again", ExplainTier(plan->source.tier));
      if (match->inexact_position > 0) {
        absl::StrAppend(&plan->explanation, "; ");
        ExplainMiss(*match, &plan->explanation);
      }
      absl::StrAppend(&plan->explanation, skipped);
      return kPrefixHit;
    }
    if (absl::IsDataLoss(source.status())) {
      skip_damaged(match->id);
    } else if (absl::IsNotFound(source.status())) {  // deleted, or expired, in between
      query.skip.push_back(match->id);
    } else {
      plan->explanation =
          absl::StrCat("state ", match->id, " has consumed the prompt's first ", match->position,
                       " tokens, but can't be read: ", source.status().message(), skipped);
      return kPrefixFailed;
    }
  }
  plan->explanation = absl::StrCat("gave up after ", kMaxPrefixAttempts,
                                   " stored prefixes that can't be read", skipped);
  return miss;
}

std::optional<HoldSet::Hold> PrefixReuse::BeginSave(const std::string& tenant) {
  std::optional<HoldSet::Hold> hold = states_.BeginSave(tenant);
  if (!hold) parts_->metrics->CountPrefixState("skipped");
  return hold;
}

void PrefixReuse::Save(const std::string& tenant, std::unique_ptr<StateSnapshot> state,
                       const std::vector<int32_t>& tokens, HoldSet::Hold hold) {
  const absl::Status status = states_.Save(tenant, std::move(state), tokens, std::move(hold));
  if (status.ok()) return;
  parts_->metrics->CountPrefixState("failed");
  parts_->log->warn("event=prefix_state_not_stored message=\"{}\"", status.ToString());
}

}  // namespace vivarium::server
