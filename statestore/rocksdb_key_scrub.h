// KeyScrub: whether all that states are found by agrees: manifests with the keys that name them and
// the reverse, sessions with their heads, requests with their expiry, counters with a recount.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "statestore/rocksdb_counters.h"
#include "statestore/rocksdb_database.h"
#include "statestore/rocksdb_keys.h"
#include "statestore/state_codec.h"

namespace vivarium::statestore {

// Looks at one moment of the database: what is committed or dropped meanwhile does not disturb it.
// Not thread-safe.
class KeyScrub {
 public:
  struct Events {
    // One thing that does not agree: DATA_LOSS naming the key.
    std::function<void(const absl::Status& inconsistency)> on_found;
    // After so many bytes were read, for so many keys; an error stops the pass.
    std::function<absl::Status(uint64_t num_bytes, uint64_t num_keys)> on_progress;
  };
  // `database` must outlive it. `prefix_hash_mask`: RocksDbOptions.
  KeyScrub(RocksDbDatabase* database, uint64_t prefix_hash_mask, Events events)
      : database_(database),
        snapshot_(database->db()),
        prefix_hash_mask_(prefix_hash_mask),
        events_(std::move(events)) {}

  // Errors: on_progress's, and UNAVAILABLE where the disk can't be read. DATA_LOSS where the
  // database itself can't go through its keys.
  absl::Status Run();

 private:
  struct Recount {
    Counters counters;
    bool is_whole = true;  // no manifest was unreadable
    std::optional<Counters> stored;
  };

  bool HasPrefixKey(const StateManifest& manifest, std::string_view key) const;
  // Each looks at one key of its kind; `rest` is what follows kind and tenant.
  absl::Status Check(std::string_view key, std::string_view value);
  absl::Status CheckManifest(std::string_view key, const std::string& tenant,
                             std::string_view value);
  absl::Status CheckChild(std::string_view key, const std::string& tenant, std::string_view rest);
  absl::Status CheckMadeIn(std::string_view key, const std::string& tenant, std::string_view rest);
  absl::Status CheckLabel(std::string_view key, const std::string& tenant, std::string_view rest);
  absl::Status CheckExpiry(std::string_view key, const std::string& tenant);
  absl::Status CheckPrefix(std::string_view key, const std::string& tenant);
  absl::Status CheckSession(std::string_view key, const std::string& tenant,
                            std::string_view value);
  absl::Status CheckHeadOf(std::string_view key, const std::string& tenant, std::string_view rest);
  absl::Status CheckRequest(std::string_view key, const std::string& tenant, std::string_view rest,
                            std::string_view value);
  absl::Status CheckRequestExpiry(std::string_view key, const std::string& tenant);
  void CheckCounters();

  // A key that must be there for another one's sake, or must not.
  absl::Status Expect(std::string_view key, const std::string& expected_key, bool is_there = true);
  // That the state `id` is there and `names` holds of it; a damaged manifest is another's business.
  absl::Status ExpectState(std::string_view key, const std::string& tenant, std::string_view id,
                           const std::function<bool(const StateManifest&)>& names);
  void Found(std::string_view key, const std::string& what);

  RocksDbDatabase* const database_;
  const RocksDbSnapshot snapshot_;
  const uint64_t prefix_hash_mask_;
  const Events events_;
  std::map<std::string, Recount> recounts_;  // by tenant
};

}  // namespace vivarium::statestore
