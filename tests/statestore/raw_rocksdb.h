// The closed store's RocksDB, opened below the store: for damage, and for counting what is there.
#pragma once

#include <rocksdb/db.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace vivarium::statestore {

class RawRocksDb {
 public:
  // Aborts when it cannot be opened.
  explicit RawRocksDb(const std::string& directory);

  rocksdb::DB& db() { return *db_; }
  rocksdb::ColumnFamilyHandle* family(bool chunks) {
    return chunks ? chunks_.get() : manifests_.get();
  }
  std::string Get(const std::string& key, bool chunks);
  void Put(const std::string& key, const std::string& value, bool chunks);
  void Erase(const std::string& key, bool chunks);
  // All keys that begin with `prefix`.
  std::vector<std::string> Keys(const std::string& prefix, bool chunks);

 private:
  std::unique_ptr<rocksdb::DB> db_;
  std::unique_ptr<rocksdb::ColumnFamilyHandle> manifests_, chunks_;
};

}  // namespace vivarium::statestore
