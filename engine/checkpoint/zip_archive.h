// The members of a zip archive that stores its members uncompressed, as torch.save writes them.
// Format: PKWARE APPNOTE 6.3 (end of central directory 4.3.16, zip64 4.3.14-15, entries 4.3.12).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace vivarium::engine {

inline constexpr uint64_t kMaxZipMembers = 1 << 18;

// Member name -> its bytes, views into `bytes`, the whole file `file`. INVALID_ARGUMENT when the
// archive is malformed, or a member compressed, encrypted, named twice or outside the file.
// Members' CRCs are not checked: that would read all weights once more.
using ZipMembers = std::map<std::string, std::span<const std::byte>, std::less<>>;
absl::StatusOr<ZipMembers> ReadStoredZip(std::span<const std::byte> bytes, const std::string& file);

}  // namespace vivarium::engine
