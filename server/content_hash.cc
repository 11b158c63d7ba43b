#include "server/content_hash.h"

#include <xxhash.h>

#include "absl/strings/str_cat.h"

namespace vivarium::server {

std::string ContentHash(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16),
                      absl::Hex(hash.low64, absl::kZeroPad16));
}

}  // namespace vivarium::server
