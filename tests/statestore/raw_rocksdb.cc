#include "tests/statestore/raw_rocksdb.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "statestore/rocksdb_counters.h"

namespace vivarium::statestore {

RawRocksDb::RawRocksDb(const std::string& directory) {
  rocksdb::ColumnFamilyOptions manifests;
  manifests.merge_operator = MakeCountersMergeOperator();
  rocksdb::ColumnFamilyOptions chunks;
  chunks.enable_blob_files = true;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(
      rocksdb::DBOptions(), directory,
      {{rocksdb::kDefaultColumnFamilyName, manifests}, {"chunks", chunks}}, &handles, &db);
  if (!status.ok()) {
    ADD_FAILURE() << status.ToString();
    std::abort();
  }
  db_.reset(db);
  manifests_.reset(handles[0]);
  chunks_.reset(handles[1]);
}

std::string RawRocksDb::Get(const std::string& key, bool chunks) {
  std::string value;
  EXPECT_TRUE(db_->Get(rocksdb::ReadOptions(), family(chunks), key, &value).ok()) << key;
  return value;
}

void RawRocksDb::Put(const std::string& key, const std::string& value, bool chunks) {
  EXPECT_TRUE(db_->Put(rocksdb::WriteOptions(), family(chunks), key, value).ok());
}

void RawRocksDb::Erase(const std::string& key, bool chunks) {
  EXPECT_TRUE(db_->Delete(rocksdb::WriteOptions(), family(chunks), key).ok());
}

std::vector<std::string> RawRocksDb::Keys(const std::string& prefix, bool chunks) {
  std::vector<std::string> keys;
  const std::unique_ptr<rocksdb::Iterator> found(
      db_->NewIterator(rocksdb::ReadOptions(), family(chunks)));
  for (found->Seek(prefix); found->Valid() && found->key().starts_with(prefix); found->Next()) {
    keys.push_back(found->key().ToString());
  }
  return keys;
}

}  // namespace vivarium::statestore
