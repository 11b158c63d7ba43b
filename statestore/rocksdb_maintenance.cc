// RocksDbStore: what looks after everything stored. Compaction, damaged states, sets of backups.
#include <rocksdb/utilities/backup_engine.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"
#include "statestore/rocksdb_store_impl.h"
#include "statestore/store_rules.h"

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMinGarbageBytes = uint64_t{1} << 20;
constexpr int64_t kGarbageShare = 10;  // a tenth of what lives

rocksdb::BackupEngineOptions BackupOptions(const std::string& directory) {
  rocksdb::BackupEngineOptions options(directory);
  options.sync = true;
  options.share_table_files = true;
  options.share_files_with_checksum = true;
  return options;
}

}  // namespace

absl::Status RocksDbStore::Compact() { return database_->Compact(); }

absl::Status RocksDbStore::CompactIfWorthwhile() {
  absl::StatusOr<Counters> total = TotalCounters();
  if (!total.ok()) return total.status();
  const auto live_bytes = static_cast<uint64_t>(std::max<int64_t>(total->live_bytes, 0));
  const uint64_t bearable_bytes = live_bytes + live_bytes / kGarbageShare + kMinGarbageBytes;
  if (DiskBytes(directory_) <= bearable_bytes) return absl::OkStatus();
  // The log first: to write out what is in memory costs little, and often is enough.
  if (absl::Status status = database_->Flush(); !status.ok()) return status;
  if (database_->ChunkFileBytes() <= bearable_bytes) return absl::OkStatus();
  return database_->Compact();
}

absl::Status RocksDbStore::ForgetDamaged(const std::string& tenant, const StateId& id) {
  cache_.Erase(CacheKey(tenant, id));
  rocksdb::WriteBatch batch;
  Counters difference{-1, -1, 0, 0};
  batch.Delete(Key(KeyKind::kManifest, tenant, id));
  // Which of them name it only the manifest knew.
  for (KeyKind kind :
       {KeyKind::kChild, KeyKind::kMadeIn, KeyKind::kLabel, KeyKind::kExpiry, KeyKind::kPrefix}) {
    const std::string prefix = KeyPrefix(kind, tenant);
    RocksDbRange range(database_->db(), prefix, PrefixEnd(prefix), nullptr);
    for (range.iterator().SeekToFirst(); range.iterator().Valid(); range.iterator().Next()) {
      if (range.key().ends_with(id)) batch.Delete(AsSlice(range.key()));
    }
    if (absl::Status status = range.status(); !status.ok()) return status;
  }
  if (absl::Status status = PlanForgetHeads(tenant, id, &batch); !status.ok()) return status;
  rocksdb::ReadOptions options;
  options.verify_checksums = false;
  const std::string first = ChunkKey(tenant, id, 0);
  const std::string prefix = first.substr(0, first.size() - sizeof(uint32_t));
  const std::unique_ptr<rocksdb::Iterator> chunk(
      database_->db()->NewIterator(options, database_->chunks()));
  for (chunk->Seek(prefix); chunk->Valid() && chunk->key().starts_with(prefix); chunk->Next()) {
    difference.live_bytes -= static_cast<int64_t>(chunk->value().size());
    batch.Delete(database_->chunks(), chunk->key());
  }
  if (!chunk->status().ok()) return FromRocksDb(chunk->status(), "read chunk");
  batch.Merge(KeyPrefix(KeyKind::kCounters, tenant), EncodeCounters(difference));
  absl::Status status = WriteIndexed(&batch, /*sync=*/true);
  if (status.ok()) quotas_.Add(tenant, difference.num_states, difference.live_bytes);
  return status;
}

absl::StatusOr<BackupInfo> RocksDbStore::AddBackup(
    const std::string& directory, const std::function<void(uint64_t copied_bytes)>& on_progress) {
  {
    absl::MutexLock lock(&mutex_);
    if (is_backing_up_) {
      return absl::AbortedError("backup to a set: another one is being made; try again after it");
    }
    is_backing_up_ = true;
  }
  absl::StatusOr<BackupInfo> info = BackupInfo();
  absl::Status status = database_->CheckWritable();
  if (status.ok()) status = MakePrivateDirectory(directory);
  if (status.ok()) {
    if (on_progress) on_progress(0);
    const uint64_t bytes_before = DiskBytes(directory);
    info = database_->AddBackup(directory, on_progress);
    const uint64_t bytes_after = DiskBytes(directory);
    if (info.ok()) info->new_bytes = bytes_after - std::min(bytes_before, bytes_after);
  }
  absl::MutexLock lock(&mutex_);
  is_backing_up_ = false;
  return status.ok() ? info : status;
}

absl::StatusOr<BackupInfo> RocksDbDatabase::AddBackup(
    const std::string& directory, const std::function<void(uint64_t copied_bytes)>& on_progress) {
  rocksdb::BackupEngine* opened = nullptr;
  const rocksdb::BackupEngineOptions engine_options = BackupOptions(directory);
  rocksdb::IOStatus status =
      rocksdb::BackupEngine::Open(rocksdb::Env::Default(), engine_options, &opened);
  const std::unique_ptr<rocksdb::BackupEngine> engine(opened);
  rocksdb::CreateBackupOptions create_options;
  create_options.flush_before_backup = true;
  uint64_t copied_bytes = 0;  // the callback comes from one thread, that of the copying
  if (on_progress) {
    create_options.progress_callback = [&] {
      copied_bytes += engine_options.callback_trigger_interval_size;
      on_progress(copied_bytes);
    };
  }
  rocksdb::BackupID id = 0;
  const Copying copying(this);
  if (status.ok()) status = engine->CreateNewBackup(create_options, db_.get(), &id);
  rocksdb::BackupInfo made;
  if (status.ok()) {
    const rocksdb::Status found = engine->GetBackupInfo(id, &made);
    if (!found.ok()) return FromRocksDb(found, absl::StrCat("backup to ", directory));
  }
  if (!status.ok()) return FromRocksDb(status, absl::StrCat("backup to ", directory));
  return BackupInfo{id, absl::FromUnixSeconds(made.timestamp), made.size, 0};
}

absl::Status RestoreBackup(const std::string& backups, uint32_t backup_id,
                           const std::string& directory) {
  std::error_code error;
  if (fs::exists(directory, error) && !fs::is_empty(directory, error)) {
    return absl::AlreadyExistsError(
        absl::StrCat("restore to \"", directory, "\": expected a new or an empty directory"));
  }
  rocksdb::BackupEngineReadOnly* opened = nullptr;
  rocksdb::IOStatus status =
      rocksdb::BackupEngineReadOnly::Open(rocksdb::Env::Default(), BackupOptions(backups), &opened);
  const std::unique_ptr<rocksdb::BackupEngineReadOnly> engine(opened);
  if (!status.ok()) return FromRocksDb(status, absl::StrCat("backups in ", backups));
  if (absl::Status made = MakePrivateDirectory(directory); !made.ok()) return made;
  status = backup_id == 0 ? engine->RestoreDBFromLatestBackup(directory, directory)
                          : engine->RestoreDBFromBackup(backup_id, directory, directory);
  return FromRocksDb(status, absl::StrCat("restore from ", backups));
}

absl::StatusOr<std::vector<BackupInfo>> ListBackups(const std::string& backups) {
  rocksdb::BackupEngineReadOnly* opened = nullptr;
  const rocksdb::IOStatus status =
      rocksdb::BackupEngineReadOnly::Open(rocksdb::Env::Default(), BackupOptions(backups), &opened);
  const std::unique_ptr<rocksdb::BackupEngineReadOnly> engine(opened);
  if (!status.ok()) return FromRocksDb(status, absl::StrCat("backups in ", backups));
  std::vector<rocksdb::BackupInfo> found;
  engine->GetBackupInfo(&found);
  std::vector<BackupInfo> infos;
  infos.reserve(found.size());
  for (const rocksdb::BackupInfo& info : found) {
    infos.push_back({info.backup_id, absl::FromUnixSeconds(info.timestamp), info.size, 0});
  }
  return infos;
}

}  // namespace vivarium::statestore
