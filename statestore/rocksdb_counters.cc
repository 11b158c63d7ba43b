#include "statestore/rocksdb_counters.h"

#include "statestore/byte_codec.h"

namespace vivarium::statestore {
namespace {

class CountersMergeOperator final : public rocksdb::AssociativeMergeOperator {
 public:
  bool Merge(const rocksdb::Slice& /*key*/, const rocksdb::Slice* existing,
             const rocksdb::Slice& difference, std::string* sum,
             rocksdb::Logger* /*logger*/) const override {
    Counters total;
    Counters delta;
    if (existing != nullptr && !DecodeCounters({existing->data(), existing->size()}, &total)) {
      return false;  // RocksDB reports corruption
    }
    if (!DecodeCounters({difference.data(), difference.size()}, &delta)) return false;
    total += delta;
    *sum = EncodeCounters(total);
    return true;
  }
  // Stored in the database: never changes.
  const char* Name() const override { return "vivarium.counters.v1"; }
};

}  // namespace

Counters& Counters::operator+=(const Counters& other) {
  // As unsigned: damaged numbers may wrap, but not in an undefined way.
  const auto add = [](int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  };
  num_states = add(num_states, other.num_states);
  num_manifests = add(num_manifests, other.num_manifests);
  num_sessions = add(num_sessions, other.num_sessions);
  live_bytes = add(live_bytes, other.live_bytes);
  return *this;
}

std::string EncodeCounters(const Counters& counters) {
  std::string bytes;
  ByteWriter writer(&bytes);
  writer.Number<int64_t>(counters.num_states);
  writer.Number<int64_t>(counters.num_manifests);
  writer.Number<int64_t>(counters.num_sessions);
  writer.Number<int64_t>(counters.live_bytes);
  return bytes;
}

bool DecodeCounters(std::string_view bytes, Counters* counters) {
  ByteReader reader(bytes);
  counters->num_states = reader.Number<int64_t>();
  counters->num_manifests = reader.Number<int64_t>();
  counters->num_sessions = reader.Number<int64_t>();
  counters->live_bytes = reader.Number<int64_t>();
  return reader.ok() && reader.remaining() == 0;
}

std::shared_ptr<rocksdb::MergeOperator> MakeCountersMergeOperator() {
  return std::make_shared<CountersMergeOperator>();
}

}  // namespace vivarium::statestore
