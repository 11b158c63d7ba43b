#include "statestore/rocksdb_chunk_file.h"

#include <rocksdb/env.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace vivarium::statestore {
namespace {

constexpr char kSuffix[] = ".chunks";
constexpr uint64_t kSyncStrideBytes = uint64_t{4} << 20;

rocksdb::EnvOptions FileOptions(const rocksdb::Options& options) {
  rocksdb::EnvOptions file(options);
  file.bytes_per_sync = kSyncStrideBytes;  // the disk is at work while the rest is written
  return file;
}

}  // namespace

std::string ChunkFileName(std::string_view tenant, std::string_view state_id) {
  return absl::StrCat(std::string(tenant), ".", std::string(state_id), kSuffix);
}

bool IsChunkFileName(std::string_view name) {
  return absl::EndsWith(absl::string_view(name.data(), name.size()), kSuffix);
}

ChunkFile::ChunkFile(const rocksdb::Options& options, rocksdb::ColumnFamilyHandle* family,
                     std::string path)
    : path_(std::move(path)),
      env_(options.env),
      writer_(FileOptions(options), options, family, /*invalidate_page_cache=*/false) {}

ChunkFile::~ChunkFile() {
  // The database has linked what it took.
  if (is_open_) (void)env_->DeleteFile(path_).ok();
}

rocksdb::Status ChunkFile::Add(std::string_view key, std::string_view envelope,
                               std::string_view payload) {
  if (!is_open_) {
    is_open_ = true;
    if (rocksdb::Status status = writer_.Open(path_); !status.ok()) return status;
  }
  value_.clear();
  value_.append(envelope).append(payload);
  return writer_.Put(rocksdb::Slice(key.data(), key.size()), value_);
}

rocksdb::Status ChunkFile::Finish() { return writer_.Finish(); }

}  // namespace vivarium::statestore
