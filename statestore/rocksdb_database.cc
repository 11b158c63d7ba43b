#include "statestore/rocksdb_database.h"

#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/listener.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"
#include "statestore/record_frame.h"
#include "statestore/rocksdb_counters.h"
#include "statestore/rocksdb_keys.h"

namespace vivarium::statestore {
namespace {

constexpr FrameKind kFormatFrame = {"store format record", "VSTO", 1};
constexpr char kChunksFamily[] = "chunks";
constexpr size_t kBlockCacheBytes = 32 << 20;
constexpr size_t kManifestBufferBytes = 16 << 20;
constexpr uint64_t kMaxLogBytes = uint64_t{256} << 20;  // of the write-ahead log, before a flush
constexpr uint64_t kMinResumeBytes = uint64_t{4} << 20;
constexpr size_t kMinBlobBytes = 4 << 10;
constexpr uint64_t kBlobFileBytes = uint64_t{128} << 20;
constexpr int kMaxOpenFiles = 512;  // a process may have 1,024 by default, connections included

rocksdb::Slice ToSlice(std::string_view bytes) { return {bytes.data(), bytes.size()}; }

rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env) {
  rocksdb::DBOptions db_options;
  db_options.create_if_missing = true;
  db_options.create_missing_column_families = true;
  db_options.env = env;
  db_options.paranoid_checks = true;
  db_options.max_bgerror_resume_count = 0;  // see Listener: nothing goes on by itself
  // A torn end of the log is what a crash leaves of writes that nobody was told of.
  db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  db_options.max_total_wal_size = kMaxLogBytes;
  db_options.allow_fallocate = false;  // tens of MB for each log, however little is in it
  db_options.max_background_jobs = 2;
  db_options.max_open_files = kMaxOpenFiles;
  db_options.keep_log_file_num = 4;  // of RocksDB's own text log
  db_options.max_log_file_size = 4 << 20;
  db_options.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  db_options.stats_dump_period_sec = 0;
  db_options.skip_stats_update_on_db_open = true;
  return db_options;
}

rocksdb::BlockBasedTableOptions MakeTableOptions() {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  table.checksum = rocksdb::kXXH3;  // this build's crc32c is slow
  return table;
}

rocksdb::ColumnFamilyOptions MakeManifestOptions() {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = kManifestBufferBytes;
  family.compression = rocksdb::kNoCompression;
  family.merge_operator = MakeCountersMergeOperator();
  family.max_successive_merges = 64;  // a read of the counters stays cheap
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(MakeTableOptions()));
  return family;
}

rocksdb::ColumnFamilyOptions MakeChunkOptions(const RocksDbOptions& options) {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = options.write_buffer_bytes;
  family.compression = rocksdb::kNoCompression;
  family.enable_blob_files = true;
  family.min_blob_size = kMinBlobBytes;
  family.blob_file_size = kBlobFileBytes;
  family.blob_compression_type = rocksdb::kNoCompression;
  family.enable_blob_garbage_collection = true;
  family.blob_garbage_collection_age_cutoff = 1.0;
  family.blob_garbage_collection_force_threshold = 0.3;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(MakeTableOptions()));
  return family;
}

bool IsLockError(const rocksdb::Status& status) {
  const std::string message = status.ToString();
  return status.IsIOError() && (absl::StrContains(message, "While lock file") ||
                                absl::StrContains(message, "lock hold by current process"));
}

}  // namespace

absl::Status FromRocksDb(const rocksdb::Status& status, const std::string& what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (status.IsNotFound()) return absl::NotFoundError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

// Background work that fails must be known at once, not at the next write; and RocksDB must not go
// on by itself: after a failed sync never, after a full disk when Resume says so.
class RocksDbDatabase::Listener final : public rocksdb::EventListener {
 public:
  explicit Listener(RocksDbDatabase* database) : database_(database) {}

  void OnBackgroundError(rocksdb::BackgroundErrorReason /*reason*/,
                         rocksdb::Status* error) override {
    database_->TakeFailure(*error, FromRocksDb(*error, "background work"));
  }
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason /*reason*/, rocksdb::Status /*error*/,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }

 private:
  RocksDbDatabase* const database_;
};

RocksDbRange::RocksDbRange(rocksdb::DB* db, std::string begin, std::string end,
                           const rocksdb::Snapshot* snapshot)
    : begin_(std::move(begin)), end_(std::move(end)), lower_(begin_), upper_(end_) {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  options.iterate_lower_bound = &lower_;
  options.iterate_upper_bound = &upper_;
  iterator_.reset(db->NewIterator(options));
}

absl::Status RocksDbRange::status() const { return FromRocksDb(iterator_->status(), "list"); }

RocksDbDatabase::RocksDbDatabase(const std::string& directory, const RocksDbOptions& options,
                                 StoreEvents* events)
    : directory_(directory),
      disk_reserve_bytes_(options.disk_reserve_bytes),
      events_(events),
      guard_(std::make_shared<WriteGuard>(
          options.env != nullptr ? options.env->GetFileSystem() : rocksdb::FileSystem::Default(),
          directory, options.chunk_bytes + kEnvelopeBytes)),
      env_(rocksdb::NewCompositeEnv(guard_)) {}

absl::StatusOr<std::unique_ptr<RocksDbDatabase>> RocksDbDatabase::Open(
    const std::string& directory, const RocksDbOptions& options, StoreEvents* events) {
  auto database = std::unique_ptr<RocksDbDatabase>(new RocksDbDatabase(directory, options, events));
  if (absl::Status status = database->OpenDb(directory, options); !status.ok()) return status;
  if (absl::Status status = database->CheckFormat(directory); !status.ok()) return status;
  return database;
}

absl::Status RocksDbDatabase::OpenDb(const std::string& directory, const RocksDbOptions& options) {
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, MakeManifestOptions()},
      {kChunksFamily, MakeChunkOptions(options)},
  };
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  rocksdb::DBOptions db_options = MakeDbOptions(env_.get());
  chunk_options_ = rocksdb::Options(db_options, families[1].options);
  db_options.listeners.push_back(std::make_shared<Listener>(this));
  const rocksdb::Status status = rocksdb::DB::Open(db_options, directory, families, &handles, &db);
  if (IsLockError(status)) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", directory,
                     " is open already, in another process or in this one (its file LOCK "
                     "is held)"));
  }
  // RocksDB says so too where it could not read.
  const bool could_not_read = absl::StrContains(status.ToString(), "IO error") ||
                              absl::StrContains(status.ToString(), "Direct I/O");
  if (status.IsInvalidArgument() && !could_not_read) {
    return absl::FailedPreconditionError(absl::StrCat(
        "store ", directory, ": not one of ours, or of a newer version: ", status.ToString()));
  }
  if (!status.ok()) return FromRocksDb(status, absl::StrCat("open store ", directory));
  db_.reset(db);
  default_.reset(handles[0]);
  chunks_.reset(handles[1]);
  RemoveChunkFiles();
  return absl::OkStatus();
}

void RocksDbDatabase::RemoveChunkFiles() {
  std::vector<std::string> names;
  if (!env_->GetChildren(directory_, &names).ok()) return;  // the next Open will
  for (const std::string& name : names) {
    if (IsChunkFileName(name)) (void)env_->DeleteFile(directory_ + "/" + name).ok();
  }
}

absl::Status RocksDbDatabase::CheckFormat(const std::string& directory) {
  absl::StatusOr<std::optional<std::string>> format = Get(std::string(kFormatKey), nullptr);
  if (!format.ok()) return format.status();
  if (format->has_value()) {
    absl::StatusOr<std::string_view> body = Unframe(kFormatFrame, **format);
    if (body.ok()) return absl::OkStatus();
    return absl::Status(body.status().code(),
                        absl::StrCat("store ", directory, ": ", body.status().message()));
  }
  RocksDbRange everything(db_.get(), "", "\xff", nullptr);
  everything.iterator().SeekToFirst();
  if (everything.iterator().Valid()) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", directory, ": it holds a database of another program"));
  }
  if (absl::Status status = everything.status(); !status.ok()) return status;
  rocksdb::WriteBatch batch;
  batch.Put(ToSlice(kFormatKey), Frame(kFormatFrame, ""));
  return Write(&batch, /*sync=*/true);
}

RocksDbDatabase::~RocksDbDatabase() {
  if (db_ == nullptr || chunks_ == nullptr || !CheckWritable().ok()) return;
  // What fails here is still in the log.
  (void)db_->Flush(rocksdb::FlushOptions(), {default_.get(), chunks_.get()}).ok();
}

absl::StatusOr<std::optional<std::string>> RocksDbDatabase::Get(const std::string& key,
                                                                const rocksdb::Snapshot* snapshot) {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  std::string value;
  const rocksdb::Status status = db_->Get(options, key, &value);
  if (status.IsNotFound()) return std::optional<std::string>();
  if (!status.ok()) return FromRocksDb(status, "read");
  return std::optional<std::string>(std::move(value));
}

absl::Status RocksDbDatabase::GetChunk(const std::string& key, const rocksdb::Snapshot* snapshot,
                                       rocksdb::PinnableSlice* chunk) {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  options.verify_checksums = false;  // the manifest has one, of 64 bits, and the caller checks it
  options.fill_cache = false;
  return FromRocksDb(db_->Get(options, chunks_.get(), key, chunk), "read chunk");
}

absl::Status RocksDbDatabase::Fault() const {
  return absl::UnavailableError(absl::StrCat(
      "the store stopped writing, until the program is restarted, after: ", fault_.message()));
}

absl::Status RocksDbDatabase::CheckWritable() {
  {
    absl::MutexLock lock(&mutex_);
    if (!fault_.ok()) return Fault();
    if (!is_full_) return absl::OkStatus();
  }
  // For all that is in memory, once more, and new logs: to try without would be the end.
  uint64_t in_memory_bytes = 0;
  db_->GetAggregatedIntProperty(rocksdb::DB::Properties::kSizeAllMemTables, &in_memory_bytes);
  absl::Status space = CheckSpace(2 * in_memory_bytes + kMinResumeBytes);
  if (!space.ok()) return space;
  {
    absl::MutexLock lock(&mutex_);
    if (!fault_.ok()) return Fault();
    if (!is_full_) return absl::OkStatus();
    if (is_resuming_ || num_taking_ > 0) {
      return absl::ResourceExhaustedError(
          "disk of the store: it was full, and writing is about to go on; try again");
    }
    is_resuming_ = has_resumed_ = true;
  }
  absl::Status status = Resume();
  absl::MutexLock lock(&mutex_);
  is_resuming_ = false;
  if (status.ok()) is_full_ = false;
  return fault_.ok() ? status : Fault();
}

// RocksDB writes all that it has in memory to new files, and begins a new log.
absl::Status RocksDbDatabase::Resume() {
  guard_->ForgetNoSpace();
  const rocksdb::Status status = db_->Resume();
  absl::Status result = FromRocksDb(status, "writing after the disk was full");
  if (!result.ok()) TakeFailure(status, result);
  return result;
}

rocksdb::Status RocksDbDatabase::KeepResumable() {
  uint64_t num_in_memory = 0;
  db_->GetIntProperty(default_.get(), rocksdb::DB::Properties::kNumEntriesActiveMemTable,
                      &num_in_memory);
  if (num_in_memory > 0) return rocksdb::Status::OK();
  rocksdb::WriteBatch batch;
  batch.Put(ToSlice(kFormatKey), Frame(kFormatFrame, ""));
  rocksdb::WriteOptions options;
  options.disableWAL = true;  // it is there already
  return db_->Write(options, &batch);
}

void RocksDbDatabase::TakeFailure(const rocksdb::Status& status, const absl::Status& fault) {
  const WriteGuard::Health health = guard_->health();
  // RocksDB does not go on after a full disk kept it from beginning a new log.
  const bool is_fatal = status.severity() >= rocksdb::Status::Severity::kFatalError;
  const bool is_full = health != WriteGuard::Health::kBroken && !is_fatal &&
                       (status.IsNoSpace() || health == WriteGuard::Health::kNoSpace);
  {
    absl::MutexLock lock(&mutex_);
    if (!fault_.ok() || (is_full && is_full_)) return;
    if (is_full) {
      is_full_ = true;
    } else {
      fault_ = fault;
    }
  }
  if (events_ != nullptr) events_->OnFault(fault);
}

absl::Status RocksDbDatabase::Write(rocksdb::WriteBatch* batch, bool sync) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  rocksdb::WriteOptions options;
  options.sync = sync;
  rocksdb::Status written = KeepResumable();
  if (written.ok()) written = db_->Write(options, batch);
  absl::Status status = FromRocksDb(written, "write");
  if (!status.ok()) TakeFailure(written, status);
  return status;
}

std::unique_ptr<ChunkFile> RocksDbDatabase::NewChunkFile(std::string_view tenant,
                                                         std::string_view state_id) {
  return std::make_unique<ChunkFile>(
      chunk_options_, chunks_.get(),
      absl::StrCat(directory_, "/", ChunkFileName(tenant, state_id)));
}

absl::Status RocksDbDatabase::TakeFileFailure(const rocksdb::Status& status) {
  absl::Status result = FromRocksDb(status, "write chunks");
  if (!result.ok()) TakeFailure(status, result);
  return result;
}

bool RocksDbDatabase::CanTakeFilesNow() const { return !has_resumed_ && num_copies_ == 0; }

bool RocksDbDatabase::CanTakeFiles() const {
  absl::MutexLock lock(&mutex_);
  return CanTakeFilesNow();
}

absl::StatusOr<bool> RocksDbDatabase::TakeChunkFiles(
    const std::vector<std::unique_ptr<ChunkFile>>& files) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  {
    absl::MutexLock lock(&mutex_);
    if (!CanTakeFilesNow()) return false;
    ++num_taking_;
  }
  std::vector<std::string> paths;
  paths.reserve(files.size());
  for (const std::unique_ptr<ChunkFile>& file : files) paths.push_back(file->path());
  rocksdb::IngestExternalFileOptions options;
  options.move_files = true;
  options.failed_move_fall_back_to_copy = false;
  options.write_global_seqno = false;
  absl::Status status = TakeFileFailure(db_->IngestExternalFile(chunks_.get(), paths, options));
  absl::MutexLock lock(&mutex_);
  --num_taking_;
  if (!status.ok()) return status;
  return true;
}

RocksDbDatabase::Copying::Copying(RocksDbDatabase* database) : database_(database) {
  absl::MutexLock lock(&database_->mutex_);
  ++database_->num_copies_;
  const auto is_quiet = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(database_->mutex_) {
    return database_->num_taking_ == 0;
  };
  database_->mutex_.Await(absl::Condition(&is_quiet));
}

RocksDbDatabase::Copying::~Copying() {
  absl::MutexLock lock(&database_->mutex_);
  --database_->num_copies_;
}

absl::StatusOr<uint64_t> RocksDbDatabase::FreeBytes() const {
  uint64_t free_bytes = 0;
  const rocksdb::IOStatus status =
      guard_->GetFreeSpace(directory_, rocksdb::IOOptions(), &free_bytes, nullptr);
  if (!status.ok()) return FromRocksDb(status, "ask for free space");
  return free_bytes;
}

absl::Status RocksDbDatabase::CheckSpace(uint64_t wanted_bytes) const {
  absl::StatusOr<uint64_t> free_bytes = FreeBytes();
  if (!free_bytes.ok()) return free_bytes.status();
  if (*free_bytes >= disk_reserve_bytes_ && *free_bytes - disk_reserve_bytes_ >= wanted_bytes) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("disk of the store: ", *free_bytes, " bytes free, expected ", wanted_bytes,
                   " and a reserve of ", disk_reserve_bytes_,
                   "; nothing is saved until there is space, reading and deleting go on"));
}

uint64_t RocksDbDatabase::ChunkFileBytes() const {
  uint64_t blob_bytes = 0;
  uint64_t table_bytes = 0;
  db_->GetIntProperty(chunks_.get(), rocksdb::DB::Properties::kTotalBlobFileSize, &blob_bytes);
  db_->GetIntProperty(chunks_.get(), rocksdb::DB::Properties::kTotalSstFilesSize, &table_bytes);
  return blob_bytes + table_bytes;
}

std::vector<std::pair<std::string, uint64_t>> RocksDbDatabase::TableFiles() const {
  std::vector<rocksdb::LiveFileMetaData> live;
  db_->GetLiveFilesMetaData(&live);
  std::vector<std::pair<std::string, uint64_t>> files;
  files.reserve(live.size());
  for (const rocksdb::LiveFileMetaData& file : live) {
    files.emplace_back(file.relative_filename, file.size);
  }
  return files;
}

absl::Status RocksDbDatabase::VerifyTableFile(const std::string& name) const {
  const std::string path = absl::StrCat(directory_, "/", name);
  rocksdb::Options options;
  options.env = env_.get();
  rocksdb::SstFileReader reader(options);
  rocksdb::Status status = reader.Open(path);
  if (status.ok()) status = reader.VerifyChecksum();
  if (!status.ok() && env_->FileExists(path).IsNotFound()) return absl::OkStatus();
  if (status.ok() || status.IsIOError()) return FromRocksDb(status, absl::StrCat("file ", name));
  return absl::DataLossError(absl::StrCat("file ", name, ": ", status.ToString()));
}

absl::Status RocksDbDatabase::Flush() {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  return FromRocksDb(db_->Flush(rocksdb::FlushOptions(), {default_.get(), chunks_.get()}), "flush");
}

absl::Status RocksDbDatabase::Compact() {
  if (absl::Status status = Flush(); !status.ok()) return status;
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  options.blob_garbage_collection_age_cutoff = 1.0;
  rocksdb::Status status = db_->CompactRange(options, chunks_.get(), nullptr, nullptr);
  if (status.ok()) status = db_->CompactRange(options, default_.get(), nullptr, nullptr);
  return FromRocksDb(status, "compact");
}

absl::Status RocksDbDatabase::Checkpoint(const std::string& directory) {
  const Copying copying(this);
  rocksdb::Checkpoint* made = nullptr;
  rocksdb::Status status = rocksdb::Checkpoint::Create(db_.get(), &made);
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(made);
  if (status.ok()) status = checkpoint->CreateCheckpoint(directory);
  return FromRocksDb(status, absl::StrCat("backup to ", directory));
}

}  // namespace vivarium::statestore
