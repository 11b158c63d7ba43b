#include "statestore/rocksdb_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "statestore/record_codec.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/state_validation.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxAncestryReserve = 64;

absl::Status ValidateOptions(const RocksDbOptions& options) {
  if (options.chunk_bytes < kMinChunkBytes || options.chunk_bytes > kMaxChunkBytes ||
      options.chunk_bytes % kMinChunkBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_bytes ", options.chunk_bytes, ": expected a multiple of ",
                     kMinChunkBytes, " from ", kMinChunkBytes, " to ", kMaxChunkBytes));
  }
  if (options.max_requests_per_tenant < 1 || options.max_scanned_per_page < 1 ||
      options.write_buffer_bytes < (1 << 16)) {
    return absl::InvalidArgumentError(
        "max_requests_per_tenant, max_scanned_per_page: expected 1 or more; write_buffer_bytes: "
        "expected 65536 or more");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StoredDataError(const absl::Status& status, const std::string& what) {
  return absl::Status(absl::IsUnimplemented(status) ? status.code() : absl::StatusCode::kDataLoss,
                      absl::StrCat(what, ": ", std::string(status.message())));
}

uint64_t DiskBytes(const std::string& directory) {
  uint64_t num_bytes = 0;
  std::error_code error;  // files come and go: one that is gone counts nothing
  for (fs::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    struct stat info;
    if (stat(entry->path().c_str(), &info) == 0 && S_ISREG(info.st_mode)) {
      num_bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
  }
  return num_bytes;
}

// States are conversations: nobody else may read them.
absl::Status MakePrivateDirectory(const std::string& directory) {
  const auto failed = [&](const char* what, int error) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", directory, ": ", what, ": ", std::strerror(error)));
  };
  std::error_code error;
  const fs::path parent = fs::path(directory).parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (error) return failed("cannot make its parent directory", error.value());
  if (mkdir(directory.c_str(), 0700) == 0) return absl::OkStatus();
  if (errno != EEXIST) return failed("cannot make the directory", errno);
  struct stat info;
  if (stat(directory.c_str(), &info) != 0) return failed("cannot look at it", errno);
  if (!S_ISDIR(info.st_mode)) return failed("cannot open it", ENOTDIR);
  if ((info.st_mode & 0777) != 0700 && chmod(directory.c_str(), 0700) != 0) {
    return failed("cannot make it private (mode 0700)", errno);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StateStore>> OpenRocksDbStore(const std::string& directory,
                                                             const RocksDbOptions& options,
                                                             Clock clock, StoreEvents* events) {
  absl::Status status = ValidateOptions(options);
  std::error_code error;
  if (status.ok() && !options.create_if_missing && !fs::exists(directory + "/CURRENT", error)) {
    return absl::NotFoundError(absl::StrCat("store ", directory, ": there is none"));
  }
  if (status.ok()) status = MakePrivateDirectory(directory);
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<RocksDbDatabase>> database =
      RocksDbDatabase::Open(directory, options, events);
  if (!database.ok()) return database.status();
  auto store = std::make_unique<RocksDbStore>(directory, options, std::move(clock), events,
                                              *std::move(database));
  if (status = store->Recover(); !status.ok()) return status;
  return std::unique_ptr<StateStore>(std::move(store));
}

absl::Status RocksDbStore::Recover() {
  absl::Status status = ForEachTenant(KeyKind::kRequestExpiry, [this](const std::string& tenant) {
    const std::string prefix = KeyPrefix(KeyKind::kRequestExpiry, tenant);
    RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
    size_t num_requests = 0;
    for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
      ++num_requests;
    }
    absl::MutexLock lock(&mutex_);
    num_requests_[tenant] = num_requests;
    return range.status();
  });
  if (status.ok()) {
    status = ForEachTenant(KeyKind::kCounters, [this](const std::string& tenant) {
      absl::StatusOr<Counters> counters = CountersOf(tenant);
      if (counters.ok()) quotas_.Add(tenant, counters->num_states, counters->live_bytes);
      return counters.status();
    });
  }
  uint64_t num_orphan_chunks = 0;
  if (status.ok()) status = LoadPrefixIndex();
  if (status.ok()) status = SweepOrphans(&num_orphan_chunks);
  if (status.ok()) status = SweepGarbage();
  if (status.ok() && num_orphan_chunks > 0 && events_ != nullptr) {
    events_->OnSweep(0, num_orphan_chunks);
  }
  return status;
}

absl::StatusOr<StoredManifest> RocksDbStore::DecodeStored(const std::string& tenant,
                                                          std::string_view id,
                                                          std::string_view bytes,
                                                          ManifestPart part) const {
  const std::string what = absl::StrCat("state ", std::string(id));
  absl::StatusOr<StoredManifest> stored = DecodeManifest(bytes, part);
  if (!stored.ok()) return StoredDataError(stored.status(), what);
  if (stored->manifest.id != id || stored->manifest.tenant != tenant) {
    return absl::DataLossError(
        absl::StrCat(what, ": under its key lies the manifest of ", stored->manifest.id));
  }
  return stored;
}

absl::StatusOr<std::optional<StoredManifest>> RocksDbStore::ReadManifest(
    const std::string& tenant, const StateId& id, const rocksdb::Snapshot* snapshot,
    ManifestPart part) {
  absl::StatusOr<std::optional<std::string>> bytes =
      database_->Get(Key(KeyKind::kManifest, tenant, id), snapshot);
  if (!bytes.ok()) return bytes.status();
  if (!bytes->has_value()) return std::optional<StoredManifest>();
  absl::StatusOr<StoredManifest> stored = DecodeStored(tenant, id, **bytes, part);
  if (!stored.ok()) return stored.status();
  return std::optional<StoredManifest>(*std::move(stored));
}

absl::StatusOr<bool> RocksDbStore::HasKeyIn(const std::string& prefix,
                                            const rocksdb::Snapshot* snapshot) {
  RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), snapshot);
  range.iterator().SeekToFirst();
  if (range.iterator().Valid()) return true;
  if (absl::Status status = range.status(); !status.ok()) return status;
  return false;
}

absl::StatusOr<bool> RocksDbStore::IsLive(const StateManifest& manifest, absl::Time now,
                                          const rocksdb::Snapshot* snapshot) {
  if (manifest.bytes_dropped) return false;
  if (!HasExpired(manifest, /*is_recent_head=*/false, now)) return true;
  return HasKeyIn(KeyPrefix(KeyKind::kHeadOf, manifest.tenant, manifest.id), snapshot);
}

absl::StatusOr<StoredManifest> RocksDbStore::ReadLive(const std::string& tenant, const StateId& id,
                                                      const rocksdb::Snapshot* snapshot,
                                                      ManifestPart part) {
  absl::StatusOr<std::optional<StoredManifest>> stored = ReadManifest(tenant, id, snapshot, part);
  if (!stored.ok()) return stored.status();
  if (!stored->has_value()) return StateNotFound(id);
  absl::StatusOr<bool> is_live = IsLive((*stored)->manifest, clock_(), snapshot);
  if (!is_live.ok()) return is_live.status();
  if (!*is_live) return StateNotFound(id);
  return **std::move(stored);
}

absl::StatusOr<StateManifest> RocksDbStore::Shown(StoredManifest stored, absl::Time now,
                                                  const rocksdb::Snapshot* snapshot) {
  absl::StatusOr<bool> is_live = IsLive(stored.manifest, now, snapshot);
  if (!is_live.ok()) return is_live.status();
  return *is_live ? std::move(stored.manifest) : AsDropped(std::move(stored.manifest));
}

absl::StatusOr<std::optional<Session>> RocksDbStore::ReadSession(
    const std::string& tenant, const std::string& name, const rocksdb::Snapshot* snapshot) {
  absl::StatusOr<std::optional<std::string>> bytes =
      database_->Get(Key(KeyKind::kSession, tenant, name), snapshot);
  if (!bytes.ok()) return bytes.status();
  if (!bytes->has_value()) return std::optional<Session>();
  const std::string what = absl::StrCat("session \"", name, "\"");
  absl::StatusOr<Session> session = DecodeSession(**bytes);
  if (!session.ok()) return StoredDataError(session.status(), what);
  if (session->tenant != tenant || session->name != name) {
    return absl::DataLossError(absl::StrCat(what, ": under its key lies another session"));
  }
  return std::optional<Session>(*std::move(session));
}

absl::StatusOr<std::optional<RequestRecord>> RocksDbStore::ReadRequest(
    const std::string& tenant, const std::string& request_id) {
  absl::StatusOr<std::optional<std::string>> bytes =
      database_->Get(Key(KeyKind::kRequest, tenant, request_id), nullptr);
  if (!bytes.ok()) return bytes.status();
  if (!bytes->has_value()) return std::optional<RequestRecord>();
  absl::StatusOr<RequestRecord> request = DecodeRequest(tenant, request_id, **bytes);
  if (!request.ok()) return StoredDataError(request.status(), "finished request");
  return std::optional<RequestRecord>(*std::move(request));
}

absl::StatusOr<StateManifest> RocksDbStore::GetManifest(const std::string& tenant,
                                                        const StateId& id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  const RocksDbSnapshot snapshot(database_->db());
  absl::StatusOr<StoredManifest> stored =
      ReadLive(tenant, id, snapshot.get(), ManifestPart::kWithoutTranscript);
  if (!stored.ok()) return stored.status();
  return std::move(stored->manifest);
}

absl::StatusOr<std::vector<StateManifest>> RocksDbStore::Ancestry(const std::string& tenant,
                                                                  const StateId& id, size_t limit) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateStateId(id);
  if (!status.ok()) return status;
  const RocksDbSnapshot snapshot(database_->db());
  const absl::Time now = clock_();
  std::vector<StateManifest> chain;
  chain.reserve(std::min(limit, kMaxAncestryReserve));
  for (StateId next = id; !next.empty() && chain.size() < limit;) {
    absl::StatusOr<std::optional<StoredManifest>> stored =
        ReadManifest(tenant, next, snapshot.get(), ManifestPart::kAll);
    if (!stored.ok()) return stored.status();
    if (!stored->has_value()) break;
    absl::StatusOr<StateManifest> shown = Shown(**std::move(stored), now, snapshot.get());
    if (!shown.ok()) return shown.status();
    next = shown->parent_id;
    chain.push_back(*std::move(shown));
  }
  if (chain.empty() && limit > 0) return StateNotFound(id);
  return chain;
}

absl::StatusOr<Session> RocksDbStore::GetSession(const std::string& tenant,
                                                 const std::string& name) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateSessionName(name);
  if (!status.ok()) return status;
  absl::StatusOr<std::optional<Session>> session = ReadSession(tenant, name, nullptr);
  if (!session.ok()) return session.status();
  if (!session->has_value()) return SessionNotFound(name);
  return **std::move(session);
}

absl::StatusOr<RequestRecord> RocksDbStore::GetRequest(const std::string& tenant,
                                                       const std::string& request_id) {
  absl::Status status = ValidateTenant(tenant);
  if (status.ok()) status = ValidateRequestId(request_id);
  if (!status.ok()) return status;
  absl::StatusOr<std::optional<RequestRecord>> request = ReadRequest(tenant, request_id);
  if (!request.ok()) return request.status();
  if (!request->has_value() || (*request)->expires <= clock_()) return RequestNotFound();
  return **std::move(request);
}

absl::StatusOr<Counters> RocksDbStore::CountersOf(const std::string& tenant) {
  absl::StatusOr<std::optional<std::string>> bytes =
      database_->Get(KeyPrefix(KeyKind::kCounters, tenant), nullptr);
  if (!bytes.ok()) return bytes.status();
  Counters counters;
  if (!bytes->has_value() || !DecodeCounters(**bytes, &counters)) {
    return absl::DataLossError(absl::StrCat("counters of tenant ", tenant, ": malformed"));
  }
  return counters;
}

absl::StatusOr<Counters> RocksDbStore::TotalCounters() {
  Counters total;
  absl::Status status = ForEachTenant(KeyKind::kCounters, [&](const std::string& tenant) {
    absl::StatusOr<Counters> counters = CountersOf(tenant);
    if (counters.ok()) total += *counters;
    return counters.status();
  });
  if (!status.ok()) return status;
  return total;
}

absl::StatusOr<StoreStats> RocksDbStore::Stats() {
  absl::StatusOr<Counters> total = TotalCounters();
  if (!total.ok()) return total.status();
  StoreStats stats;
  stats.num_states = static_cast<uint64_t>(total->num_states);
  stats.num_manifests = static_cast<uint64_t>(total->num_manifests);
  stats.num_sessions = static_cast<uint64_t>(total->num_sessions);
  stats.live_bytes = static_cast<uint64_t>(total->live_bytes);
  stats.disk_bytes = DiskBytes(directory_);
  stats.is_read_only = !database_->CheckWritable().ok() || !database_->CheckSpace(0).ok();
  const StateCache::Stats cache = cache_.stats();
  stats.cache_bytes = cache.num_bytes;
  stats.cache_states = cache.num_states;
  stats.cache_limit_bytes = cache.limit_bytes;
  stats.cache_evictions = cache.num_evictions;
  return stats;
}

absl::StatusOr<StateReservation> RocksDbStore::Reserve(const std::string& tenant,
                                                       uint64_t num_states,
                                                       const engine::StateLayout& layout,
                                                       StateCodec codec) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  return quotas_.Reserve(
      tenant, {num_states, num_states * MaxStoredBytes(layout, codec, options_.chunk_bytes)});
}

absl::Status RocksDbStore::CheckWritable(uint64_t num_bytes) {
  // Every byte goes to the log and to a blob file.
  absl::Status status = database_->CheckSpace(2 * num_bytes);
  return status.ok() ? database_->CheckWritable() : status;
}

absl::Status RocksDbStore::Backup(const std::string& directory) {
  std::error_code error;
  if (directory.empty() || fs::exists(directory, error)) {
    return absl::AlreadyExistsError(
        absl::StrCat("backup to \"", directory, "\": expected a new directory"));
  }
  if (absl::Status status = database_->CheckWritable(); !status.ok()) return status;
  // Made inside a private directory, so that nobody can read it before it is private itself.
  const std::string making = directory + ".making";
  fs::remove_all(making, error);
  absl::Status status = MakePrivateDirectory(making);
  const std::string made = making + "/store";
  if (status.ok()) status = database_->Checkpoint(made);
  if (status.ok() &&
      (chmod(made.c_str(), 0700) != 0 || std::rename(made.c_str(), directory.c_str()) != 0)) {
    status =
        absl::UnavailableError(absl::StrCat("backup to ", directory, ": ", std::strerror(errno)));
  }
  fs::remove_all(making, error);
  return status;
}

}  // namespace vivarium::statestore
