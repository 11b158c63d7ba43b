// ChunkFile: the chunks of one large state as a file of their own, which the database then takes as
// it is: each byte is written once, in one go, instead of first to the log and later to a blob
// file.
#pragma once

#include <rocksdb/file_system.h>
#include <rocksdb/options.h>
#include <rocksdb/sst_file_writer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace vivarium::statestore {

// Not thread-safe. What is not taken by the database is removed with the ChunkFile, or, after a
// crash, when the database is opened (IsChunkFileName).
class ChunkFile {
 public:
  // Makes `path`. `options`: of the database and of the column family of chunks.
  ChunkFile(const rocksdb::Options& options, rocksdb::ColumnFamilyHandle* family, std::string path);
  ~ChunkFile();
  ChunkFile(const ChunkFile&) = delete;
  ChunkFile& operator=(const ChunkFile&) = delete;

  const std::string& path() const { return path_; }
  // Keys ascend. After an error nothing else may be called.
  rocksdb::Status Add(std::string_view key, std::string_view envelope, std::string_view payload);
  // Synced when it returns.
  rocksdb::Status Finish();

 private:
  const std::string path_;
  rocksdb::Env* const env_;
  rocksdb::SstFileWriter writer_;
  bool is_open_ = false;
  std::string value_;
};

// A chunk file opened for reading, with its first and its last `edge_bytes` in memory, read here
// and now: enough for its first and last chunk and, behind them, its index. Reads of those never
// fail. (RocksDB 7.8 aborts where, taking a file, it can't read its last chunk.)
rocksdb::IOStatus OpenWithEdges(std::unique_ptr<rocksdb::FSRandomAccessFile> file,
                                uint64_t file_bytes, size_t edge_bytes,
                                std::unique_ptr<rocksdb::FSRandomAccessFile>* opened);

// How the file for a state's chunks is called until the database has taken it.
std::string ChunkFileName(std::string_view tenant, std::string_view state_id);
bool IsChunkFileName(std::string_view name);

}  // namespace vivarium::statestore
