// A 128-bit hash of bytes, as hex: to tell requests apart, not against forgers.
#pragma once

#include <string>
#include <string_view>

namespace vivarium::server {

// 32 hex digits (XXH3-128).
std::string ContentHash(std::string_view bytes);

}  // namespace vivarium::server
