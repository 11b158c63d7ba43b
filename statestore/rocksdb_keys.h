// The keys of the RocksDB store. Every key but the format's begins with its kind and its tenant;
// README.md has the table. Tenants, ids and session names have no '/', so no key is another's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/time/time.h"

namespace vivarium::statestore {

// In the column family "default".
enum class KeyKind : char {
  kManifest = 'm',       // m/tenant/id               -> manifest
  kChild = 'c',          // c/tenant/parent/child     -> ""
  kMadeIn = 'n',         // n/tenant/session/id       -> ""
  kLabel = 'l',          // l/tenant/label/id         -> ""
  kExpiry = 'e',         // e/tenant/time id          -> ""; no key = never
  kSession = 's',        // s/tenant/session          -> session record
  kHeadOf = 'h',         // h/tenant/id/session       -> ""; one per recent head
  kRequest = 'r',        // r/tenant/request id       -> request record
  kRequestExpiry = 'x',  // x/tenant/time request id  -> ""
  kIntent = 'p',    // p/tenant/id               -> number of chunks; while a commit writes them
  kGarbage = 'g',   // g/tenant/id               -> ""; a manifest to remove with its chain
  kCounters = 'k',  // k/tenant/                 -> counters
  kPrefix = 'f',    // f/tenant/hash id          -> ""; states by the hash of their tokens
};
inline constexpr std::string_view kFormatKey = "v";

// "k/tenant/".
std::string KeyPrefix(KeyKind kind, std::string_view tenant);
std::string KeyPrefix(KeyKind kind, std::string_view tenant,
                      std::string_view first);  // ".../first/"
std::string Key(KeyKind kind, std::string_view tenant, std::string_view last);
std::string Key(KeyKind kind, std::string_view tenant, std::string_view first,
                std::string_view last);

std::string LabelPrefix(std::string_view tenant, std::string_view key, std::string_view value);
// Times in key order.
std::string ExpiryKey(KeyKind kind, std::string_view tenant, absl::Time time,
                      std::string_view last);
// Of every key that expires at `time` or before: an exclusive bound.
std::string ExpiryEnd(KeyKind kind, std::string_view tenant, absl::Time time);
// The id at the end of an expiry key.
std::string_view ExpiringId(std::string_view key, std::string_view tenant);

// "f/tenant/" hash id, the hash big-endian.
std::string PrefixKey(std::string_view tenant, uint64_t hash, std::string_view id);
uint64_t PrefixKeyHash(std::string_view key);

// The tenant of any key with one.
std::string_view KeyTenant(std::string_view key);
// The smallest key after all that begin with `prefix`, which ends in '/' or in printable text.
std::string PrefixEnd(std::string prefix);

// In the column family "chunks".
std::string ChunkKey(std::string_view tenant, std::string_view id, uint32_t chunk_index);

}  // namespace vivarium::statestore
