#include "server/prefix_states.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/metrics.h"
#include "server/sampling.h"
#include "statestore/slot_packing.h"

namespace vivarium::server {

using statestore::StateId;
using statestore::StateManifest;

absl::Duration PrefixStates::ttl() const {
  const int64_t seconds = parts_->options.prefix_ttl_seconds;
  return seconds > 0 ? absl::Seconds(seconds) : absl::InfiniteDuration();
}

absl::Status PrefixStates::Save(const std::string& tenant,
                                std::unique_ptr<engine::StateSnapshot> state,
                                const std::vector<int32_t>& tokens, HoldSet::Hold /*hold*/) {
  Learn(tenant);
  // Another stream may have been faster.
  auto stored = parts_->store->FindPrefix(tenant, {parts_->model.identity, tokens, {}});
  if (!stored.ok()) return stored.status();
  if (stored->position == state->position) {
    parts_->metrics->CountPrefixState("duplicate");
    return absl::OkStatus();
  }
  Entry entry;
  if (absl::Status status = Store(tenant, state.get(), tokens, &entry); !status.ok()) return status;
  parts_->metrics->CountPrefixState("stored");
  {
    absl::MutexLock lock(&mutex_);
    tenants_[tenant].entries.push_back(std::move(entry));
  }
  DropBeyond(tenant, static_cast<size_t>(parts_->options.prefix_max_states));
  return absl::OkStatus();
}

absl::Status PrefixStates::Store(const std::string& tenant, engine::StateSnapshot* state,
                                 const std::vector<int32_t>& tokens, Entry* entry) {
  statestore::Commit commit;
  commit.tenant = tenant;
  StateManifest manifest;
  manifest.id = parts_->ids->NextStateId();
  manifest.tenant = tenant;
  manifest.identity = std::move(state->identity);
  manifest.layout = std::move(state->layout);
  manifest.position = state->position;
  manifest.pending_token = state->pending_token;
  // Not the sampling of the stream that it was made in: that was its client's.
  manifest.sampling = DefaultSampling(parts_->model.generation_defaults);
  manifest.recent_tokens = std::move(state->recent_tokens);
  manifest.transcript.reserve(tokens.size());
  for (const int32_t id : tokens) manifest.transcript.push_back({id, /*is_output=*/false});
  manifest.labels[std::string(kPrefixLabel)] = std::string(kPrefixLabelValue);
  // A codec that rounds would make it useless for exact reuse.
  if (statestore::StateCodecFor(parts_->options.codec) == statestore::StateCodec::kZstd) {
    manifest.codec = statestore::StateCodec::kZstd;
  }
  manifest.created = absl::Now();
  manifest.expires = manifest.created + ttl();
  *entry = {manifest.id, manifest.expires};
  commit.states.push_back({std::move(manifest), &state->slot});
  return parts_->store->Apply(commit);
}

void PrefixStates::NoteUse(const std::string& tenant, const StateId& id) {
  Learn(tenant);
  const absl::Time now = absl::Now();
  const absl::Time expires = now + ttl();
  {
    absl::MutexLock lock(&mutex_);
    std::deque<Entry>& entries = tenants_[tenant].entries;
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [&](const Entry& entry) { return entry.id == id; });
    if (found == entries.end()) return;
    std::rotate(found, found + 1, entries.end());
    if (entries.back().expires - now >= ttl() / 2) return;
    entries.back().expires = expires;
  }
  // Should the executor have no room, the next use finds the time half gone again only later: the
  // state then goes when its time is over, and comes back when two prompts ask for it.
  (void)parts_->executor->TryRun([parts = parts_, tenant, id, expires] {
    statestore::StateUpdate update;
    update.expires = expires;
    const auto updated = parts->store->UpdateState(tenant, id, update);
    if (!updated.ok() && !absl::IsNotFound(updated.status())) {
      parts->log->warn("event=prefix_state_not_kept state={} message=\"{}\"", id,
                       updated.status().ToString());
    }
  });
}

void PrefixStates::Learn(const std::string& tenant) {
  {
    absl::MutexLock lock(&mutex_);
    if (tenants_[tenant].is_known) return;
  }
  statestore::StateFilter filter;
  filter.labels[std::string(kPrefixLabel)] = std::string(kPrefixLabelValue);
  std::vector<Entry> found;
  std::string token;
  do {
    auto page = parts_->store->ListStates(tenant, filter, statestore::kMaxPageSize, token);
    if (!page.ok()) {  // tried again with the next use
      parts_->log->warn("event=prefix_states_unknown message=\"{}\"", page.status().ToString());
      return;
    }
    for (const StateManifest& manifest : page->items) {
      found.push_back({manifest.id, manifest.expires});
    }
    token = page->next_page_token;
  } while (!token.empty() && found.size() < static_cast<size_t>(kMaxPrefixStates));
  // Use puts the end off: what ends first was not used the longest.
  std::stable_sort(found.begin(), found.end(),
                   [](const Entry& a, const Entry& b) { return a.expires > b.expires; });
  absl::MutexLock lock(&mutex_);
  Tenant& known = tenants_[tenant];
  if (std::exchange(known.is_known, true)) return;
  for (Entry& entry : found) known.entries.push_front(std::move(entry));
}

size_t PrefixStates::DropBeyond(const std::string& tenant, size_t limit) {
  for (size_t num_dropped = 0;;) {
    StateId id;
    {
      absl::MutexLock lock(&mutex_);
      std::deque<Entry>& entries = tenants_[tenant].entries;
      if (entries.size() <= limit) return num_dropped;
      id = std::move(entries.front().id);
      entries.pop_front();
    }
    const absl::Status status = parts_->store->DeleteState(tenant, id);
    if (status.ok()) {
      ++num_dropped;
      parts_->metrics->CountPrefixState("dropped");
    } else if (!absl::IsNotFound(status) && !absl::IsFailedPrecondition(status)) {
      // Else it was gone already; or pinned or a head: then it is somebody's.
      parts_->log->warn("event=prefix_state_not_dropped state={} message=\"{}\"", id,
                        status.ToString());
    }
  }
}

bool PrefixStates::GiveBack(const std::string& tenant) {
  Learn(tenant);
  return DropBeyond(tenant, 0) > 0;
}

bool PrefixStates::MayStore(const std::string& tenant) const {
  const uint64_t slot_bytes = parts_->model.layout.slot_bytes;
  if (!parts_->store->CheckWritable(slot_bytes).ok()) return false;
  const statestore::QuotaUsage quota = parts_->store->GetQuota(tenant);
  const auto is_free = [](uint64_t limit, uint64_t used, uint64_t reserved, uint64_t wanted) {
    return limit == 0 || used + reserved + wanted <= limit / 2;
  };
  return is_free(quota.limit.num_states, quota.used.num_states, quota.reserved.num_states, 1) &&
         is_free(quota.limit.num_bytes, quota.used.num_bytes, quota.reserved.num_bytes, slot_bytes);
}

}  // namespace vivarium::server
