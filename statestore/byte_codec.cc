#include "statestore/byte_codec.h"

#include <xxhash.h>

#include <cstdlib>

namespace vivarium::statestore {

uint64_t Checksum(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

RunningChecksum::RunningChecksum() : state_(XXH3_createState()) {
  if (state_ == nullptr) std::abort();
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_.get()));
}

void RunningChecksum::Update(std::string_view bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_.get()), bytes.data(), bytes.size());
}

uint64_t RunningChecksum::Digest() const {
  return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_.get()));
}

void RunningChecksum::Free::operator()(void* state) const {
  XXH3_freeState(static_cast<XXH3_state_t*>(state));
}

std::string ByteReader::String(size_t max_bytes) {
  const auto num_bytes = Number<uint32_t>();
  if (num_bytes > max_bytes) ok_ = false;
  return std::string(Bytes(num_bytes));
}

uint32_t ByteReader::Count(size_t max_count, size_t element_bytes) {
  const auto count = Number<uint32_t>();
  // count * element_bytes fits 64 bits: 32 bits times the size of a small struct.
  if (count > max_count || uint64_t{count} * element_bytes > remaining()) ok_ = false;
  return ok_ ? count : 0;
}

std::string_view ByteReader::Bytes(size_t num_bytes) {
  if (!Has(num_bytes)) return {};
  const std::string_view bytes = bytes_.substr(offset_, num_bytes);
  offset_ += num_bytes;
  return bytes;
}

}  // namespace vivarium::statestore
