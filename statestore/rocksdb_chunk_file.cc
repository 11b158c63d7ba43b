#include "statestore/rocksdb_chunk_file.h"

#include <rocksdb/env.h>

#include <algorithm>
#include <cstring>
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

class FileWithEdges final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  struct Edge {
    uint64_t begin = 0;
    std::string bytes;
  };
  FileWithEdges(std::unique_ptr<rocksdb::FSRandomAccessFile> file, Edge head, Edge tail)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), edges_{std::move(head), std::move(tail)} {}

  rocksdb::IOStatus Read(uint64_t offset, size_t num_bytes, const rocksdb::IOOptions& options,
                         rocksdb::Slice* result, char* scratch,
                         rocksdb::IODebugContext* context) const override {
    for (const Edge& edge : edges_) {
      const uint64_t end = edge.begin + edge.bytes.size();
      if (offset < edge.begin || offset > end || num_bytes > end - offset) continue;
      std::memcpy(scratch, edge.bytes.data() + (offset - edge.begin), num_bytes);
      *result = rocksdb::Slice(scratch, num_bytes);
      return rocksdb::IOStatus::OK();
    }
    return FSRandomAccessFileOwnerWrapper::Read(offset, num_bytes, options, result, scratch,
                                                context);
  }
  // What is read ahead is in memory already, or not needed.
  rocksdb::IOStatus Prefetch(uint64_t /*offset*/, size_t /*num_bytes*/,
                             const rocksdb::IOOptions& /*options*/,
                             rocksdb::IODebugContext* /*context*/) override {
    return rocksdb::IOStatus::OK();
  }

 private:
  const Edge edges_[2];
};

rocksdb::IOStatus ReadEdge(rocksdb::FSRandomAccessFile& file, uint64_t begin, size_t num_bytes,
                           FileWithEdges::Edge* edge) {
  edge->begin = begin;
  edge->bytes.resize(num_bytes);
  rocksdb::Slice read;
  rocksdb::IOStatus status =
      file.Read(begin, num_bytes, rocksdb::IOOptions(), &read, edge->bytes.data(), /*dbg=*/nullptr);
  if (status.ok() && read.size() != num_bytes) {
    status = rocksdb::IOStatus::IOError("a file of chunks is shorter than it was written");
  }
  if (status.ok() && read.data() != edge->bytes.data()) edge->bytes = read.ToString();
  return status;
}

}  // namespace

rocksdb::IOStatus OpenWithEdges(std::unique_ptr<rocksdb::FSRandomAccessFile> file,
                                uint64_t file_bytes, size_t edge_bytes,
                                std::unique_ptr<rocksdb::FSRandomAccessFile>* opened) {
  const size_t num_bytes = std::min<uint64_t>(edge_bytes, file_bytes);
  FileWithEdges::Edge head, tail;
  rocksdb::IOStatus status = ReadEdge(*file, 0, num_bytes, &head);
  if (status.ok()) status = ReadEdge(*file, file_bytes - num_bytes, num_bytes, &tail);
  if (status.ok()) {
    *opened = std::make_unique<FileWithEdges>(std::move(file), std::move(head), std::move(tail));
  }
  return status;
}

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
