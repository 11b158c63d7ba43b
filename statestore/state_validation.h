// What the store accepts: names, labels, manifests, slots and commits. Every check answers
// INVALID_ARGUMENT naming the offending value and the expected form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

inline constexpr size_t kMaxIdentityBytes = 512;         // each field of ModelIdentity
inline constexpr size_t kMaxTextTailBytes = 3;           // of incomplete UTF-8
inline constexpr size_t kMaxTranscriptTokens = 1 << 24;  // of a state, and of a commit
inline constexpr size_t kMaxRequestHashBytes = 128;
inline constexpr size_t kMaxParts = 1 << 14;
inline constexpr size_t kMaxPartNameBytes = 128;
inline constexpr size_t kMaxPartDims = 8;
inline constexpr uint64_t kMaxSlotBytes = uint64_t{1} << 36;  // 64 GiB
inline constexpr size_t kMaxCommitStates = 64;

absl::Status ValidateTenant(std::string_view tenant);         // [a-z0-9-]{1,64}
absl::Status ValidateSessionName(std::string_view name);      // [A-Za-z0-9._-]{1,128}
absl::Status ValidateRequestId(std::string_view request_id);  // 1 to 128 bytes
// UTF-8 without control characters, 1 to 128 bytes a key, up to 128 a value, up to 32 labels.
absl::Status ValidateLabels(const Labels& labels);
absl::Status ValidatePageSize(int page_size);  // 1 to kMaxPageSize
absl::Status ValidateFilter(const StateFilter& filter);

// Parts ascending, disjoint, aligned to 64 bytes, inside the slot, of the size that shape and dtype
// say. UNIMPLEMENTED for a newer version.
absl::Status ValidateLayout(const engine::StateLayout& layout);

// Every field of a manifest that the store relies on, its layout included.
absl::Status ValidateManifest(const StateManifest& manifest);

// What can be said about a commit without looking into the store.
absl::Status ValidateCommit(const Commit& commit);

// No NaN and no infinity in any part, and zeros between the parts: for slots from outside.
// `slot` has layout.slot_bytes bytes.
absl::Status ValidateSlot(const engine::StateLayout& layout, const engine::StateBuffer& slot);

}  // namespace vivarium::statestore
