// RocksDbStore::Apply.
#include <algorithm>
#include <set>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"
#include "statestore/record_codec.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/slot_packing.h"
#include "statestore/state_validation.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kMaxBatchBytes = 8 << 20;  // of chunks in one write

std::vector<std::string> LockKeysOf(const Commit& commit) {
  std::vector<std::string> keys;
  if (commit.head_move.has_value()) {
    keys.push_back(Key(KeyKind::kSession, commit.tenant, commit.head_move->session));
    // Nobody thins what becomes a head.
    keys.push_back(Key(KeyKind::kManifest, commit.tenant, commit.head_move->head));
  }
  if (commit.request.has_value()) {
    keys.push_back(Key(KeyKind::kRequest, commit.tenant, commit.request->request_id));
  }
  for (const Commit::NewState& state : commit.states) {
    keys.push_back(Key(KeyKind::kManifest, commit.tenant, state.manifest.id));
  }
  for (const StateId& id : commit.thinned) {
    keys.push_back(Key(KeyKind::kManifest, commit.tenant, id));
  }
  return keys;
}

bool IsOfCommit(const Commit& commit, const StateId& id) {
  return std::any_of(commit.states.begin(), commit.states.end(),
                     [&](const auto& state) { return state.manifest.id == id; });
}

std::string EncodeIntent(uint64_t num_chunks) {
  std::string bytes;
  ByteWriter(&bytes).Number<uint32_t>(static_cast<uint32_t>(num_chunks));
  return bytes;
}

rocksdb::Slice EnvelopeOf(const EncodedChunk& chunk) {
  return {chunk.envelope.data(), chunk.envelope.size()};
}
rocksdb::Slice PayloadOf(const EncodedChunk& chunk) {
  return {reinterpret_cast<const char*>(chunk.payload.data()), chunk.payload.size()};
}

// Chunk `chunk_index` of `state` as stored; its checksum goes into the table.
void AddChunk(const Commit::NewState& state, uint32_t chunk_index, EncodedChunk* chunk,
              ChunkTable* table) {
  EncodeChunk(state.manifest.layout, state.manifest.codec, *state.slot, table->chunk_bytes,
              chunk_index, chunk);
  const std::string_view envelope = EnvelopeOf(*chunk).ToStringView();
  table->checksums.push_back(ChunkChecksum(envelope, chunk->payload));
  table->stored_bytes += envelope.size() + chunk->payload.size();
}

}  // namespace

RocksDbStore::IdHold::~IdHold() {
  absl::MutexLock lock(&store_->mutex_);
  for (const TenantAndId& key : held_) store_->held_ids_.erase(key);
}

bool RocksDbStore::IdHold::Add(const std::string& tenant, const StateId& id) {
  absl::MutexLock lock(&store_->mutex_);
  if (!store_->held_ids_.emplace(tenant, id).second) return false;
  held_.emplace_back(tenant, id);
  return true;
}

absl::Status RocksDbStore::Apply(const Commit& commit) {
  const absl::Time begin = absl::Now();
  if (absl::Status status = ValidateCommit(commit); !status.ok()) return status;
  uint64_t num_bytes = 0;
  for (const Commit::NewState& state : commit.states) {
    const uint64_t slot_bytes = state.slot->size();
    if (NumChunks(slot_bytes, options_.chunk_bytes) > kMaxChunks) {
      return absl::InvalidArgumentError(absl::StrCat(
          "state ", state.manifest.id, ": slot of ", slot_bytes, " bytes, expected at most ",
          kMaxChunks, " chunks of ", options_.chunk_bytes));
    }
    num_bytes += StoredBytes(slot_bytes, options_.chunk_bytes);
  }
  absl::Status status = ApplyValid(commit, num_bytes);
  if (events_ != nullptr) events_->OnCommit(absl::Now() - begin, num_bytes, status);
  return status;
}

Quota RocksDbStore::MostUsed(const Commit& commit) const {
  Quota most{commit.states.size(), 0};
  for (const Commit::NewState& state : commit.states) {
    most.num_bytes +=
        MaxStoredBytes(state.manifest.layout, state.manifest.codec, options_.chunk_bytes);
  }
  return most;
}

absl::Status RocksDbStore::ApplyValid(const Commit& commit, uint64_t num_bytes) {
  IdHold ids(this);
  for (const Commit::NewState& state : commit.states) {
    if (!ids.Add(commit.tenant, state.manifest.id)) {
      return absl::AlreadyExistsError(
          absl::StrCat("state ", state.manifest.id, " is being written"));
    }
  }
  absl::Status status = CheckWritable(num_bytes);
  if (!status.ok()) return status;
  bool is_new_request = false;
  if (!commit.states.empty()) {
    rocksdb::WriteBatch unused;
    status = PlanCommit(commit, {}, &unused, &is_new_request);
    if (!status.ok()) return status;
  }
  absl::StatusOr<QuotaLedger::Taken> taken =
      quotas_.Take(commit.tenant, MostUsed(commit), commit.reservation);
  if (!taken.ok()) return taken.status();
  Quota used;
  status = WriteCommit(commit, &used, &is_new_request);
  if (!status.ok()) {
    QuotaLedger::Return(*std::move(taken), commit.reservation);
    return status;
  }
  quotas_.Settle(*std::move(taken), used);
  if (is_new_request) {
    absl::MutexLock lock(&mutex_);
    ++num_requests_[commit.tenant];
  }
  // The commit is durable: what trimming old records meets is reported, not answered.
  if (absl::Status trimmed = TrimRequests(commit.tenant); !trimmed.ok() && events_ != nullptr) {
    events_->OnFault(trimmed);
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::WriteCommit(const Commit& commit, Quota* used, bool* is_new_request) {
  std::vector<std::string> keys = LockKeysOf(commit);
  if (keys.empty()) return absl::OkStatus();  // an empty commit
  std::vector<ChunkTable> tables;
  Counters dropped;
  absl::Status status = WriteChunks(commit, &tables);
  if (status.ok()) {
    const CommitLocks::Holder held = locks_.LockKeys(std::move(keys));
    rocksdb::WriteBatch batch;
    status = PlanCommit(commit, tables, &batch, is_new_request);
    if (status.ok()) status = PlanThinning(commit, &dropped, &batch);
    if (status.ok()) status = WriteIndexed(&batch, /*sync=*/true);
  }
  if (!status.ok()) {
    for (const Commit::NewState& state : commit.states) {
      DiscardChunks(commit.tenant, state.manifest.id,
                    NumChunks(state.slot->size(), options_.chunk_bytes));
    }
    return status;
  }
  used->num_states = tables.size();
  for (const ChunkTable& table : tables) used->num_bytes += table.stored_bytes;
  quotas_.Add(commit.tenant, dropped.num_states, dropped.live_bytes);
  CacheSaved(commit, tables);
  return absl::OkStatus();
}

void RocksDbStore::CacheSaved(const Commit& commit, const std::vector<ChunkTable>& tables) {
  for (size_t i = 0; i < commit.states.size(); ++i) {
    const StateManifest& manifest = commit.states[i].manifest;
    if (!cache_.Fits(commit.states[i].slot->size())) continue;
    engine::StateBuffer slot = CopyOf(*commit.states[i].slot);
    RoundSlot(manifest.layout, manifest.codec, &slot);  // as it will come back
    cache_.Put(CacheKey(manifest.tenant, manifest.id), tables[i].checksums, std::move(slot));
  }
}

absl::Status RocksDbStore::WriteChunks(const Commit& commit, std::vector<ChunkTable>* tables) {
  tables->resize(commit.states.size());
  absl::StatusOr<bool> has_files = WriteChunkFiles(commit, tables);
  if (!has_files.ok()) return has_files.status();
  for (size_t i = 0; i < commit.states.size(); ++i) {
    if (*has_files && HasFileOfItsOwn(commit.states[i])) continue;
    (*tables)[i] = {};
    absl::Status status = LogChunksOf(commit.states[i], &(*tables)[i]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::LogChunksOf(const Commit::NewState& state, ChunkTable* table) {
  const StateManifest& manifest = state.manifest;
  table->chunk_bytes = options_.chunk_bytes;
  const uint64_t num_chunks = NumChunks(state.slot->size(), table->chunk_bytes);
  rocksdb::WriteBatch batch;
  batch.Put(Key(KeyKind::kIntent, manifest.tenant, manifest.id), EncodeIntent(num_chunks));
  for (uint32_t i = 0; i < num_chunks; ++i) {
    const std::string key = ChunkKey(manifest.tenant, manifest.id, i);
    EncodedChunk chunk;
    AddChunk(state, i, &chunk, table);
    const rocksdb::Slice key_parts[] = {key};
    const rocksdb::Slice value_parts[] = {EnvelopeOf(chunk), PayloadOf(chunk)};
    batch.Put(database_->chunks(), rocksdb::SliceParts(key_parts, 1),
              rocksdb::SliceParts(value_parts, 2));
    // Each write may have to wait for another commit's sync: the fewer, the better.
    if (batch.GetDataSize() < kMaxBatchBytes && i + 1 < num_chunks) continue;
    absl::Status status = database_->Write(&batch, /*sync=*/false);
    if (!status.ok()) return status;
    batch.Clear();
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RocksDbStore::WriteChunkFiles(const Commit& commit,
                                                   std::vector<ChunkTable>* tables) {
  rocksdb::WriteBatch intents;
  std::vector<std::unique_ptr<ChunkFile>> files;
  for (const Commit::NewState& state : commit.states) {
    if (!HasFileOfItsOwn(state)) continue;
    intents.Put(Key(KeyKind::kIntent, commit.tenant, state.manifest.id),
                EncodeIntent(NumChunks(state.slot->size(), options_.chunk_bytes)));
  }
  if (intents.Count() == 0 || !database_->CanTakeFiles()) return false;
  // Chunks without an intent would be orphans that nobody finds: it has to be durable before they
  // are. Its sync takes as long as the disk needs to turn around; the files are written meanwhile.
  absl::Status intents_status;
  const auto write_intents = [&] { intents_status = database_->Write(&intents, /*sync=*/true); };
  std::thread intents_writer;
  try {
    intents_writer = std::thread(write_intents);
  } catch (const std::system_error&) {  // no more threads: one after the other, then
    write_intents();
  }
  absl::Status status;
  for (size_t i = 0; i < commit.states.size() && status.ok(); ++i) {
    if (!HasFileOfItsOwn(commit.states[i])) continue;
    files.push_back(database_->NewChunkFile(commit.tenant, commit.states[i].manifest.id));
    status = WriteChunkFile(commit.states[i], files.back().get(), &(*tables)[i]);
  }
  if (intents_writer.joinable()) intents_writer.join();
  if (status.ok()) status = intents_status;
  if (!status.ok()) return status;
  absl::StatusOr<bool> taken = database_->TakeChunkFiles(files);
  if (!taken.ok() || !*taken) return taken;
  for (const Commit::NewState& state : commit.states) {
    if (status.ok() && HasFileOfItsOwn(state)) status = CheckTaken(state);
  }
  if (!status.ok()) return status;
  return true;
}

// RocksDB 7.8 overlooks a read error when it looks for a file's first and last key, and then knows
// wrong ones: what lies outside of them it would not find again.
absl::Status RocksDbStore::CheckTaken(const Commit::NewState& state) {
  const auto num_chunks =
      static_cast<uint32_t>(NumChunks(state.slot->size(), options_.chunk_bytes));
  for (const uint32_t i : {uint32_t{0}, num_chunks - 1}) {
    rocksdb::PinnableSlice chunk;
    absl::Status status =
        database_->GetChunk(ChunkKey(state.manifest.tenant, state.manifest.id, i), nullptr, &chunk);
    if (!status.ok()) {
      return absl::UnavailableError(
          absl::StrCat("state ", state.manifest.id, ", chunk ", i,
                       ": not to be read once written: ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::WriteChunkFile(const Commit::NewState& state, ChunkFile* file,
                                          ChunkTable* table) {
  table->chunk_bytes = options_.chunk_bytes;
  const uint64_t num_chunks = NumChunks(state.slot->size(), table->chunk_bytes);
  rocksdb::Status status;
  for (uint32_t i = 0; i < num_chunks && status.ok(); ++i) {
    EncodedChunk chunk;
    AddChunk(state, i, &chunk, table);
    status = file->Add(ChunkKey(state.manifest.tenant, state.manifest.id, i),
                       EnvelopeOf(chunk).ToStringView(), PayloadOf(chunk).ToStringView());
  }
  if (status.ok()) status = file->Finish();
  return database_->TakeFileFailure(status);
}

absl::Status RocksDbStore::PlanCommit(const Commit& commit, const std::vector<ChunkTable>& tables,
                                      rocksdb::WriteBatch* batch, bool* is_new_request) {
  Counters difference;
  absl::Status status = PlanStates(commit, tables, &difference, batch);
  if (status.ok()) status = PlanRequest(commit, batch, is_new_request);
  if (status.ok()) status = PlanHeadMove(commit, &difference, batch);
  if (status.ok() && difference != Counters()) {
    batch->Merge(KeyPrefix(KeyKind::kCounters, commit.tenant), EncodeCounters(difference));
  }
  return status;
}

absl::Status RocksDbStore::PlanStates(const Commit& commit, const std::vector<ChunkTable>& tables,
                                      Counters* difference, rocksdb::WriteBatch* batch) {
  std::vector<StateManifest> planned;
  for (size_t i = 0; i < commit.states.size(); ++i) {
    StoredManifest stored{commit.states[i].manifest, {}};
    StateManifest& manifest = stored.manifest;
    const std::string& tenant = manifest.tenant;
    const std::string key = Key(KeyKind::kManifest, tenant, manifest.id);
    absl::StatusOr<std::optional<std::string>> existing = database_->Get(key, nullptr);
    if (!existing.ok()) return existing.status();
    if (existing->has_value()) {
      return absl::AlreadyExistsError(absl::StrCat("state ", manifest.id, " exists"));
    }
    if (tables.empty()) continue;
    stored.chunks = tables[i];
    manifest.stored_bytes = stored.chunks.stored_bytes;
    manifest.loss = WithLoss(manifest.loss,
                             MeasureLoss(manifest.layout, manifest.codec, *commit.states[i].slot));
    manifest.prefix_hash = MakePrefixHash(commit.states[i], planned);
    batch->Put(key, EncodeManifest(stored));
    if (manifest.prefix_hash.has_value()) {
      batch->Put(PrefixKey(tenant, IndexedHash(manifest), manifest.id), "");
    }
    batch->Delete(Key(KeyKind::kIntent, tenant, manifest.id));
    if (!manifest.parent_id.empty()) {
      batch->Put(Key(KeyKind::kChild, tenant, manifest.parent_id, manifest.id), "");
    }
    if (!manifest.session.empty()) {
      batch->Put(Key(KeyKind::kMadeIn, tenant, manifest.session, manifest.id), "");
    }
    for (const auto& [name, value] : manifest.labels) {
      batch->Put(LabelPrefix(tenant, name, value) + manifest.id, "");
    }
    if (manifest.expires != absl::InfiniteFuture()) {
      batch->Put(ExpiryKey(KeyKind::kExpiry, tenant, manifest.expires, manifest.id), "");
    }
    *difference += {1, 1, 0, static_cast<int64_t>(manifest.stored_bytes)};
    planned.push_back(std::move(manifest));
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::PlanRequest(const Commit& commit, rocksdb::WriteBatch* batch,
                                       bool* is_new_request) {
  if (!commit.request.has_value()) return absl::OkStatus();
  const RequestRecord& request = *commit.request;
  absl::StatusOr<std::optional<RequestRecord>> current =
      ReadRequest(commit.tenant, request.request_id);
  if (!current.ok()) return current.status();
  *is_new_request = !current->has_value();
  if (current->has_value()) {
    if ((*current)->expires > clock_()) return CheckRequest(request, *current);
    batch->Delete(
        ExpiryKey(KeyKind::kRequestExpiry, commit.tenant, (*current)->expires, request.request_id));
  }
  batch->Put(Key(KeyKind::kRequest, commit.tenant, request.request_id),
             EncodeRequest(commit.tenant, request));
  batch->Put(ExpiryKey(KeyKind::kRequestExpiry, commit.tenant, request.expires, request.request_id),
             "");
  return absl::OkStatus();
}

absl::Status RocksDbStore::PlanHeadMove(const Commit& commit, Counters* difference,
                                        rocksdb::WriteBatch* batch) {
  if (!commit.head_move.has_value()) return absl::OkStatus();
  const Commit::HeadMove& move = *commit.head_move;
  absl::StatusOr<std::optional<Session>> current =
      ReadSession(commit.tenant, move.session, nullptr);
  if (!current.ok()) return current.status();
  if (absl::Status status = CheckEtag(move, *current); !status.ok()) return status;
  if (!IsOfCommit(commit, move.head)) {
    absl::Status status =
        ReadLive(commit.tenant, move.head, nullptr, ManifestPart::kWithoutTranscript).status();
    if (!status.ok()) return status;
  }
  const Session moved = MovedSession(commit.tenant, move, *current, etags_.Next(), clock_());
  batch->Put(Key(KeyKind::kSession, commit.tenant, move.session), EncodeSession(moved));
  batch->Put(Key(KeyKind::kHeadOf, commit.tenant, move.head, move.session), "");
  if (!current->has_value()) {
    *difference += {0, 0, 1, 0};
    return absl::OkStatus();
  }
  for (const StateId& id : (*current)->recent_heads) {
    const auto& kept = moved.recent_heads;
    if (std::find(kept.begin(), kept.end(), id) == kept.end()) {
      batch->Delete(Key(KeyKind::kHeadOf, commit.tenant, id, move.session));
    }
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::PlanThinning(const Commit& commit, Counters* difference,
                                        rocksdb::WriteBatch* batch) {
  std::set<StateId> seen;
  for (const StateId& id : commit.thinned) {
    if (!seen.insert(id).second) continue;
    absl::StatusOr<std::optional<StoredManifest>> stored =
        ReadManifest(commit.tenant, id, nullptr, ManifestPart::kAll);
    if (absl::IsDataLoss(stored.status()) || absl::IsUnimplemented(stored.status())) {
      // What is damaged must not keep its descendants from being saved.
      if (events_ != nullptr) events_->OnFault(stored.status());
      continue;
    }
    if (!stored.ok()) return stored.status();
    if (!stored->has_value()) continue;
    absl::StatusOr<bool> is_thinned = IsThinned(commit, (*stored)->manifest);
    if (!is_thinned.ok()) return is_thinned.status();
    if (!*is_thinned) continue;
    if (absl::Status status = PlanDrop(**stored, batch, difference); !status.ok()) return status;
    PutDropped(**stored, batch);
  }
  if (*difference != Counters()) {
    batch->Merge(KeyPrefix(KeyKind::kCounters, commit.tenant), EncodeCounters(*difference));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RocksDbStore::IsThinned(const Commit& commit, const StateManifest& manifest) {
  const StateId& id = manifest.id;
  if (!MayBeThinned(manifest)) return false;
  if (commit.head_move.has_value() && commit.head_move->head == id) return false;
  absl::StatusOr<bool> is_head = HasKeyIn(KeyPrefix(KeyKind::kHeadOf, commit.tenant, id), nullptr);
  if (!is_head.ok()) return is_head.status();
  if (*is_head) return false;
  if (std::any_of(commit.states.begin(), commit.states.end(),
                  [&](const auto& state) { return state.manifest.parent_id == id; })) {
    return true;
  }
  return HasKeyIn(KeyPrefix(KeyKind::kChild, commit.tenant, id), nullptr);
}

void RocksDbStore::DiscardChunks(const std::string& tenant, const StateId& id,
                                 uint64_t num_chunks) {
  rocksdb::WriteBatch batch;
  for (uint64_t i = 0; i < num_chunks; ++i) {
    batch.Delete(database_->chunks(), ChunkKey(tenant, id, static_cast<uint32_t>(i)));
  }
  batch.Delete(Key(KeyKind::kIntent, tenant, id));
  // What this cannot remove now, the next Open or Sweep will: the intent stays.
  (void)database_->Write(&batch, /*sync=*/false).ok();
}

absl::Status RocksDbStore::TrimRequests(const std::string& tenant) {
  size_t num_requests = 0;
  {
    absl::MutexLock lock(&mutex_);
    num_requests = num_requests_[tenant];
  }
  const size_t max_requests = options_.max_requests_per_tenant;
  if (NumRequestsToTrim(num_requests, max_requests) == 0) return absl::OkStatus();
  const CommitLocks::Holder held = locks_.LockAll();
  {
    absl::MutexLock lock(&mutex_);  // another one may have been faster
    num_requests = num_requests_[tenant];
  }
  size_t num_removed = 0;
  return SweepRequestsOf(tenant, PrefixEnd(KeyPrefix(KeyKind::kRequestExpiry, tenant)),
                         NumRequestsToTrim(num_requests, max_requests), &num_removed);
}

}  // namespace vivarium::statestore
