#include "statestore/rocksdb_keys.h"

#include <cassert>

namespace vivarium::statestore {
namespace {

constexpr size_t kTimeBytes = 8;

// Big-endian, so that bytes order as numbers do.
void AppendBigEndian(uint64_t value, size_t num_bytes, std::string* out) {
  for (size_t i = num_bytes; i-- > 0;) out->push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

// Signed nanoseconds with the sign flipped: negative times come first.
void AppendTime(absl::Time time, std::string* out) {
  AppendBigEndian(static_cast<uint64_t>(absl::ToUnixNanos(time)) ^ (uint64_t{1} << 63), kTimeBytes,
                  out);
}

}  // namespace

std::string KeyPrefix(KeyKind kind, std::string_view tenant) {
  std::string key(1, static_cast<char>(kind));
  key.append("/").append(tenant).append("/");
  return key;
}

std::string KeyPrefix(KeyKind kind, std::string_view tenant, std::string_view first) {
  return KeyPrefix(kind, tenant).append(first).append("/");
}

std::string Key(KeyKind kind, std::string_view tenant, std::string_view last) {
  return KeyPrefix(kind, tenant).append(last);
}

std::string Key(KeyKind kind, std::string_view tenant, std::string_view first,
                std::string_view last) {
  return KeyPrefix(kind, tenant, first).append(last);
}

std::string LabelPrefix(std::string_view tenant, std::string_view key, std::string_view value) {
  // Lengths in front: labels may hold any character. Both are at most 128 bytes.
  std::string prefix = KeyPrefix(KeyKind::kLabel, tenant);
  prefix.push_back(static_cast<char>(key.size()));
  prefix.append(key);
  prefix.push_back(static_cast<char>(value.size()));
  prefix.append(value).append("/");
  return prefix;
}

std::string ExpiryKey(KeyKind kind, std::string_view tenant, absl::Time time,
                      std::string_view last) {
  std::string key = KeyPrefix(kind, tenant);
  AppendTime(time, &key);
  return key.append(last);
}

std::string ExpiryEnd(KeyKind kind, std::string_view tenant, absl::Time time) {
  return ExpiryKey(kind, tenant, time + absl::Nanoseconds(1), "");
}

std::string_view ExpiringId(std::string_view key, std::string_view tenant) {
  return key.substr(3 + tenant.size() + kTimeBytes);
}

std::string PrefixKey(std::string_view tenant, uint64_t hash, std::string_view id) {
  std::string key = KeyPrefix(KeyKind::kPrefix, tenant);
  AppendBigEndian(hash, sizeof(hash), &key);
  return key.append(id);
}

uint64_t PrefixKeyHash(std::string_view key) {
  uint64_t hash = 0;
  for (const char byte : key.substr(key.find('/', 2) + 1, sizeof(hash))) {
    hash = hash << 8 | static_cast<unsigned char>(byte);
  }
  return hash;
}

std::string_view KeyTenant(std::string_view key) { return key.substr(2, key.find('/', 2) - 2); }

std::string PrefixEnd(std::string prefix) {
  assert(!prefix.empty() && static_cast<unsigned char>(prefix.back()) < 0xff);
  ++prefix.back();
  return prefix;
}

std::string ChunkKey(std::string_view tenant, std::string_view id, uint32_t chunk_index) {
  std::string key(tenant);
  key.append("/").append(id).append("/");
  AppendBigEndian(chunk_index, 4, &key);
  return key;
}

}  // namespace vivarium::statestore
