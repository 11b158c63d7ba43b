#include "statestore/memory_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "statestore/page_token.h"
#include "statestore/prefix_hash.h"
#include "statestore/slot_packing.h"
#include "statestore/state_codec.h"
#include "statestore/state_validation.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {
namespace {

template <typename Map>
auto FindOptional(const Map& map, const std::string& key)
    -> std::optional<typename Map::mapped_type> {
  const auto found = map.find(key);
  if (found == map.end()) return std::nullopt;
  return found->second;
}

template <typename Map>
bool IsRecentHead(const Map& sessions, const StateId& id) {
  return std::any_of(sessions.begin(), sessions.end(), [&](const auto& named) {
    const std::vector<StateId>& heads = named.second.recent_heads;
    return std::find(heads.begin(), heads.end(), id) != heads.end();
  });
}

StateManifest WithoutTranscript(StateManifest manifest) {
  manifest.transcript.clear();
  return manifest;
}

uint64_t PackedStateBytes(const Commit::NewState& state, uint32_t chunk_bytes) {
  const StateManifest& manifest = state.manifest;
  if (manifest.codec != StateCodec::kZstd) {
    return MaxStoredBytes(manifest.layout, manifest.codec, chunk_bytes);
  }
  uint64_t num_bytes = 0;
  for (uint64_t i = 0; i < NumChunks(state.slot->size(), chunk_bytes); ++i) {
    EncodedChunk chunk;
    EncodeChunk(manifest.layout, manifest.codec, *state.slot, chunk_bytes, i, &chunk);
    num_bytes += chunk.envelope.size() + chunk.payload.size();
  }
  return num_bytes;
}

}  // namespace

MemoryStore::MemoryStore(Clock clock, StoreEvents* events, MemoryOptions options)
    : clock_(clock),
      events_(events),
      etags_(std::move(clock)),
      chunk_bytes_(options.chunk_bytes),
      quotas_(std::move(options.quotas)) {}

bool MemoryStore::IsLive(const Tenant& tenant, const StateManifest& manifest, absl::Time now) {
  return !manifest.bytes_dropped &&
         !HasExpired(manifest, IsRecentHead(tenant.sessions, manifest.id), now);
}

MemoryStore::Entry* MemoryStore::FindLive(const std::string& tenant, const StateId& id) {
  const auto tenant_found = tenants_.find(tenant);
  if (tenant_found == tenants_.end()) return nullptr;
  const auto found = tenant_found->second.states.find(id);
  if (found == tenant_found->second.states.end()) return nullptr;
  return IsLive(tenant_found->second, found->second.manifest, clock_()) ? &found->second : nullptr;
}

absl::Status MemoryStore::Apply(const Commit& commit) {
  const absl::Time begin = clock_();
  absl::Status status = ValidateCommit(commit);
  if (!status.ok()) return status;
  {
    absl::MutexLock lock(&mutex_);
    status = ApplyLocked(commit);
  }
  uint64_t num_bytes = 0;
  for (const Commit::NewState& state : commit.states) num_bytes += state.slot->size();
  if (events_ != nullptr) events_->OnCommit(clock_() - begin, num_bytes, status);
  return status;
}

absl::Status MemoryStore::CheckCommit(const Tenant& tenant, const Commit& commit,
                                      absl::Time now) const {
  for (const Commit::NewState& state : commit.states) {
    if (tenant.states.contains(state.manifest.id)) {
      return absl::AlreadyExistsError("state " + state.manifest.id + " exists");
    }
  }
  if (commit.request.has_value()) {
    std::optional<RequestRecord> current =
        FindOptional(tenant.requests, commit.request->request_id);
    if (current.has_value() && current->expires <= now) current.reset();
    if (absl::Status status = CheckRequest(*commit.request, current); !status.ok()) return status;
  }
  return CheckHeadMove(tenant, commit, now);
}

absl::Status MemoryStore::ApplyLocked(const Commit& commit) {
  const absl::Time now = clock_();
  Tenant& tenant = tenants_[commit.tenant];
  if (absl::Status status = CheckCommit(tenant, commit, now); !status.ok()) return status;
  Quota most{commit.states.size(), 0};
  for (const Commit::NewState& state : commit.states) {
    most.num_bytes += MaxStoredBytes(state.manifest.layout, state.manifest.codec, chunk_bytes_);
  }
  absl::StatusOr<QuotaLedger::Taken> taken = quotas_.Take(commit.tenant, most, commit.reservation);
  if (!taken.ok()) return taken.status();

  std::vector<StateId> thinned = commit.thinned;
  std::erase_if(thinned, [&](const StateId& id) {
    const auto found = tenant.states.find(id);
    return found == tenant.states.end() || !MayBeThinned(found->second.manifest) ||
           IsRecentHead(tenant.sessions, id);
  });
  Quota used{commit.states.size(), 0};
  for (const Commit::NewState& state : commit.states) {
    Entry entry{state.manifest, engine::StateBuffer(state.slot->size())};
    std::memcpy(entry.slot.data(), state.slot->data(), state.slot->size());
    entry.manifest.stored_bytes = PackedStateBytes(state, chunk_bytes_);
    used.num_bytes += entry.manifest.stored_bytes;
    entry.manifest.loss = WithLoss(
        state.manifest.loss, MeasureLoss(state.manifest.layout, state.manifest.codec, *state.slot));
    RoundSlot(state.manifest.layout, state.manifest.codec, &entry.slot);
    const auto parent = tenant.states.find(state.manifest.parent_id);
    entry.manifest.prefix_hash =
        state.is_reusable
            ? PrefixHashOf(state.manifest,
                           parent == tenant.states.end() ? nullptr : &parent->second.manifest)
            : std::nullopt;
    tenant.states.emplace(state.manifest.id, std::move(entry));
  }
  quotas_.Settle(*std::move(taken), used);
  if (commit.head_move.has_value()) MoveHead(tenant, commit, now);
  for (const StateId& id : thinned) {
    const bool is_dropped = tenant.states.at(id).manifest.bytes_dropped;  // named twice
    if (is_dropped || IsRecentHead(tenant.sessions, id) || !HasChild(tenant, id)) continue;
    DropState(tenant, id);
  }
  if (!commit.request.has_value()) return absl::OkStatus();

  auto& requests = tenant.requests;
  requests[commit.request->request_id] = *commit.request;
  for (size_t n = NumRequestsToTrim(requests.size(), kMaxRequestsPerTenant); n > 0; --n) {
    requests.erase(std::min_element(
        requests.begin(), requests.end(),
        [](const auto& a, const auto& b) { return a.second.expires < b.second.expires; }));
  }
  return absl::OkStatus();
}

absl::Status MemoryStore::CheckHeadMove(const Tenant& tenant, const Commit& commit,
                                        absl::Time now) const {
  if (!commit.head_move.has_value()) return absl::OkStatus();
  const Commit::HeadMove& move = *commit.head_move;
  absl::Status status = CheckEtag(move, FindOptional(tenant.sessions, move.session));
  if (!status.ok()) return status;
  const bool is_new =
      std::any_of(commit.states.begin(), commit.states.end(),
                  [&](const auto& state) { return state.manifest.id == move.head; });
  if (is_new) return absl::OkStatus();
  const auto found = tenant.states.find(move.head);
  if (found == tenant.states.end() || !IsLive(tenant, found->second.manifest, now)) {
    return StateNotFound(move.head);
  }
  return absl::OkStatus();
}

void MemoryStore::MoveHead(Tenant& tenant, const Commit& commit, absl::Time now) {
  const Commit::HeadMove& move = *commit.head_move;
  tenant.sessions[move.session] = MovedSession(
      commit.tenant, move, FindOptional(tenant.sessions, move.session), etags_.Next(), now);
}

absl::StatusOr<SavedState> MemoryStore::Load(const std::string& tenant, const StateId& id) {
  const absl::Time begin = clock_();
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  SavedState state;
  state.tier = LoadTier::kHost;
  {
    absl::MutexLock lock(&mutex_);
    const Entry* entry = FindLive(tenant, id);
    if (entry == nullptr) return StateNotFound(id);
    state.manifest = entry->manifest;
    state.slot = engine::StateBuffer(entry->slot.size());
    std::memcpy(state.slot.data(), entry->slot.data(), entry->slot.size());
  }
  if (events_ != nullptr) {
    events_->OnLoad(clock_() - begin, state.slot.size(), state.tier, absl::OkStatus());
  }
  return state;
}

absl::StatusOr<StateManifest> MemoryStore::GetManifest(const std::string& tenant,
                                                       const StateId& id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  const Entry* entry = FindLive(tenant, id);
  if (entry == nullptr) return StateNotFound(id);
  return WithoutTranscript(entry->manifest);
}

absl::StatusOr<Page<StateManifest>> MemoryStore::ListStates(const std::string& tenant,
                                                            const StateFilter& filter,
                                                            int page_size,
                                                            const std::string& page_token) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateFilter(filter);
  if (status.ok()) status = ValidatePageSize(page_size);
  if (!status.ok()) return status;
  const std::string scope = StatesListScope(tenant, filter);
  absl::StatusOr<std::string> last_id = DecodePageToken(scope, page_token);
  if (!last_id.ok()) return last_id.status();

  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_();
  const Tenant& data = tenants_[tenant];
  Page<StateManifest> page;
  auto end = last_id->empty() ? data.states.end() : data.states.lower_bound(*last_id);
  while (end != data.states.begin()) {
    --end;
    StateManifest manifest = WithoutTranscript(end->second.manifest);
    if (!IsLive(data, manifest, now)) manifest = AsDropped(std::move(manifest));
    if (!Matches(filter, manifest)) continue;
    if (page.items.size() == static_cast<size_t>(page_size)) {
      page.next_page_token = EncodePageToken(scope, page.items.back().id);
      break;
    }
    page.items.push_back(std::move(manifest));
  }
  return page;
}

absl::StatusOr<StateManifest> MemoryStore::UpdateState(const std::string& tenant, const StateId& id,
                                                       const StateUpdate& update) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (status.ok() && update.labels.has_value()) status = ValidateLabels(*update.labels);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  Entry* entry = FindLive(tenant, id);
  if (entry == nullptr) return StateNotFound(id);
  UpdateManifest(update, &entry->manifest);
  return entry->manifest;
}

absl::Status MemoryStore::DeleteState(const std::string& tenant, const StateId& id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  const Entry* entry = FindLive(tenant, id);
  if (entry == nullptr) return StateNotFound(id);
  if (entry->manifest.pinned) return StateIsPinned(id);
  Tenant& data = tenants_[tenant];
  for (const auto& [name, session] : data.sessions) {
    if (session.head == id) return StateIsHead(id, name);
  }
  DropState(data, id);
  return absl::OkStatus();
}

bool MemoryStore::HasChild(const Tenant& tenant, const StateId& id) {
  return std::any_of(tenant.states.begin(), tenant.states.end(),
                     [&](const auto& child) { return child.second.manifest.parent_id == id; });
}

void MemoryStore::DropState(Tenant& tenant, StateId id) {
  for (auto& [name, session] : tenant.sessions) {
    std::vector<StateId>& heads = session.recent_heads;
    heads.erase(std::remove(heads.begin(), heads.end(), id), heads.end());
  }
  Entry& entry = tenant.states.at(id);
  quotas_.Add(entry.manifest.tenant, -1, -static_cast<int64_t>(entry.manifest.stored_bytes));
  entry.manifest = AsDropped(std::move(entry.manifest));
  entry.slot = engine::StateBuffer();
  // The manifest goes once nobody descends from it; so may then its parent's.
  for (auto found = tenant.states.find(id);
       found != tenant.states.end() && found->second.manifest.bytes_dropped &&
       !HasChild(tenant, id);
       found = tenant.states.find(id)) {
    id = found->second.manifest.parent_id;
    tenant.states.erase(found);
  }
}

absl::Status MemoryStore::VerifyState(const std::string& tenant, const StateId& id) {
  return GetManifest(tenant, id).status();
}

absl::StatusOr<std::vector<StateManifest>> MemoryStore::Ancestry(const std::string& tenant,
                                                                 const StateId& id, size_t limit) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_();
  const Tenant& data = tenants_[tenant];
  std::vector<StateManifest> chain;
  auto found = data.states.find(id);
  if (found == data.states.end()) return StateNotFound(id);
  for (; found != data.states.end() && chain.size() < limit;
       found = data.states.find(chain.back().parent_id)) {
    const StateManifest& manifest = found->second.manifest;
    chain.push_back(IsLive(data, manifest, now) ? manifest : AsDropped(manifest));
  }
  return chain;
}

// Without hashes: every state's tokens are compared.
absl::StatusOr<PrefixMatch> MemoryStore::FindPrefix(const std::string& tenant,
                                                    const PrefixQuery& query) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_();
  const Tenant& data = tenants_[tenant];
  PrefixMatch match;
  for (auto entry = data.states.rbegin(); entry != data.states.rend(); ++entry) {
    const StateManifest& state = entry->second.manifest;
    const bool is_skipped =
        std::find(query.skip.begin(), query.skip.end(), state.id) != query.skip.end();
    if (is_skipped || state.position == 0 || state.position >= query.tokens.size() ||
        !IsLive(data, state, now)) {
      continue;
    }
    PrefixWalk walk(query, state.position);
    auto next = entry->first;
    while (walk.Visit(data.states.at(next).manifest)) {
      next = walk.next_id();
      if (!data.states.contains(next)) break;
    }
    if (walk.is_complete()) AddCandidate(state.id, state.position, walk.inexact(), &match);
  }
  return match;
}

absl::StatusOr<Session> MemoryStore::GetSession(const std::string& tenant,
                                                const std::string& name) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateSessionName(name);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  std::optional<Session> session = FindOptional(tenants_[tenant].sessions, name);
  if (!session.has_value()) return SessionNotFound(name);
  return *std::move(session);
}

absl::StatusOr<Page<Session>> MemoryStore::ListSessions(const std::string& tenant, int page_size,
                                                        const std::string& page_token) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidatePageSize(page_size);
  if (!status.ok()) return status;
  const std::string scope = SessionsListScope(tenant);
  absl::StatusOr<std::string> last_name = DecodePageToken(scope, page_token);
  if (!last_name.ok()) return last_name.status();
  absl::MutexLock lock(&mutex_);
  const std::map<std::string, Session>& sessions = tenants_[tenant].sessions;
  Page<Session> page;
  for (auto found = sessions.upper_bound(*last_name); found != sessions.end(); ++found) {
    if (page.items.size() == static_cast<size_t>(page_size)) {
      page.next_page_token = EncodePageToken(scope, page.items.back().name);
      break;
    }
    page.items.push_back(found->second);
  }
  return page;
}

absl::Status MemoryStore::DeleteSession(const std::string& tenant, const std::string& name,
                                        const std::string& expected_etag) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateSessionName(name);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  std::map<std::string, Session>& sessions = tenants_[tenant].sessions;
  const auto found = sessions.find(name);
  if (found == sessions.end()) return SessionNotFound(name);
  if (!expected_etag.empty()) {
    status = CheckEtag({name, found->second.head, expected_etag}, found->second);
  }
  if (status.ok()) sessions.erase(found);
  return status;
}

absl::StatusOr<RequestRecord> MemoryStore::GetRequest(const std::string& tenant,
                                                      const std::string& request_id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateRequestId(request_id);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  std::optional<RequestRecord> request = FindOptional(tenants_[tenant].requests, request_id);
  if (!request.has_value() || request->expires <= clock_()) {
    return RequestNotFound();
  }
  return *std::move(request);
}

absl::Status MemoryStore::Sweep(absl::Time now) {
  uint64_t num_expired = 0;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [name, tenant] : tenants_) {
      std::vector<StateId> expired;
      for (const auto& [id, entry] : tenant.states) {
        if (!entry.manifest.bytes_dropped && !IsLive(tenant, entry.manifest, now)) {
          expired.push_back(id);
        }
      }
      for (const StateId& id : expired) DropState(tenant, id);
      num_expired += expired.size();
      std::erase_if(tenant.requests,
                    [&](const auto& request) { return request.second.expires <= now; });
    }
  }
  if (events_ != nullptr) events_->OnSweep(num_expired, 0);
  return absl::OkStatus();
}

absl::StatusOr<StoreStats> MemoryStore::Stats() {
  absl::MutexLock lock(&mutex_);
  StoreStats stats;
  for (const auto& [name, tenant] : tenants_) {
    stats.num_sessions += tenant.sessions.size();
    stats.num_manifests += tenant.states.size();
    for (const auto& [id, entry] : tenant.states) {
      if (entry.manifest.bytes_dropped) continue;
      ++stats.num_states;
      stats.live_bytes += entry.manifest.stored_bytes;
    }
  }
  return stats;
}

// Nothing is stored that could be damaged.
absl::StatusOr<ScrubReport> MemoryStore::Scrub(const ScrubOptions& /*options*/) {
  return ScrubReport();
}

absl::Status MemoryStore::Compact() { return absl::OkStatus(); }

absl::StatusOr<StateReservation> MemoryStore::Reserve(const std::string& tenant,
                                                      uint64_t num_states,
                                                      const engine::StateLayout& layout,
                                                      StateCodec codec) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  return quotas_.Reserve(tenant,
                         {num_states, num_states * MaxStoredBytes(layout, codec, chunk_bytes_)});
}

absl::StatusOr<BackupInfo> MemoryStore::AddBackup(
    const std::string& directory,
    const std::function<void(uint64_t copied_bytes)>& /*on_progress*/) {
  return Backup(directory);
}

absl::Status MemoryStore::Backup(const std::string& /*directory*/) {
  return absl::UnimplementedError("the in-memory store has no backup");
}

}  // namespace vivarium::statestore
