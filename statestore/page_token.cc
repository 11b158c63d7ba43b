#include "statestore/page_token.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "statestore/byte_codec.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kMaxKeyBytes = 128;  // a state id or a session name
constexpr size_t kChecksumBytes = 8;
constexpr size_t kMaxTokenChars = 2 * (kChecksumBytes + kMaxKeyBytes);

absl::Status Malformed() {
  return absl::InvalidArgumentError(
      "page token: expected the next_page_token of an earlier page of the same list");
}

bool IsLowerHex(const std::string& text) {
  return text.size() % 2 == 0 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

uint64_t TokenChecksum(std::string_view scope, std::string_view last_key) {
  std::string bytes;
  ByteWriter writer(&bytes);
  writer.String(scope);
  writer.String(last_key);
  return Checksum(bytes);
}

}  // namespace

std::string StatesListScope(const std::string& tenant, const StateFilter& filter) {
  std::string scope = "states";
  ByteWriter writer(&scope);
  writer.String(tenant);
  writer.Number<uint32_t>(static_cast<uint32_t>(filter.labels.size()));
  for (const auto& [key, value] : filter.labels) {
    writer.String(key);
    writer.String(value);
  }
  writer.String(filter.session);
  writer.String(filter.parent_id);
  writer.Number<uint8_t>(filter.include_dropped ? 1 : 0);
  return scope;
}

std::string SessionsListScope(const std::string& tenant) { return "sessions" + tenant; }

std::string EncodePageToken(std::string_view scope, std::string_view last_key) {
  std::string bytes;
  ByteWriter writer(&bytes);
  writer.Number<uint64_t>(TokenChecksum(scope, last_key));
  bytes.append(last_key);
  return absl::BytesToHexString(bytes);
}

absl::StatusOr<std::string> DecodePageToken(std::string_view scope, const std::string& token) {
  if (token.empty()) return std::string();
  if (token.size() > kMaxTokenChars || !IsLowerHex(token)) return Malformed();
  const std::string bytes = absl::HexStringToBytes(token);
  if (bytes.size() <= kChecksumBytes) return Malformed();
  const auto expected = ByteReader(bytes).Number<uint64_t>();
  std::string last_key = bytes.substr(kChecksumBytes);
  if (TokenChecksum(scope, last_key) != expected) return Malformed();
  return last_key;
}

}  // namespace vivarium::statestore
