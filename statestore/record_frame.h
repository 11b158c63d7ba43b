// The frame around every record of ours: magic, version, body, checksum over all of it. Magic and
// version are its first, the checksum its last 8 bytes in every version there will be.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace vivarium::statestore {

inline constexpr size_t kFrameHeaderBytes = 8;  // magic u32, version u32
inline constexpr size_t kFrameChecksumBytes = 8;

struct FrameKind {
  std::string_view name;   // in errors, "manifest"
  std::string_view magic;  // 4 characters
  uint32_t version;        // the newest known
};

// `body` framed.
std::string Frame(const FrameKind& kind, std::string_view body);
// The body, a view into `bytes`. DATA_LOSS for wrong size, magic or checksum; UNIMPLEMENTED for a
// newer version (both named).
absl::StatusOr<std::string_view> Unframe(const FrameKind& kind, std::string_view bytes);

// Of a frame that Unframe has accepted.
uint32_t FrameVersion(std::string_view bytes);

}  // namespace vivarium::statestore
