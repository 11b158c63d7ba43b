// What a tenant has in the store, kept by RocksDB itself: every commit merges its difference in, in
// the same batch, so that the numbers are exact after any crash without counting at open.
#pragma once

#include <rocksdb/merge_operator.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace vivarium::statestore {

struct Counters {
  int64_t num_states = 0;     // with bytes
  int64_t num_manifests = 0;  // dropped ones included
  int64_t num_sessions = 0;
  int64_t live_bytes = 0;

  Counters& operator+=(const Counters& other);
  bool operator==(const Counters&) const = default;
};

std::string EncodeCounters(const Counters& counters);
// False for bytes of another size.
bool DecodeCounters(std::string_view bytes, Counters* counters);

// Adds field by field.
std::shared_ptr<rocksdb::MergeOperator> MakeCountersMergeOperator();

}  // namespace vivarium::statestore
