// Ids of states: "st_" and a ULID (48 bits of Unix milliseconds, 80 random bits), written as 26
// characters of Crockford's base32, lower case. Text order is the order of making.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "statestore/clock.h"

namespace vivarium::statestore {

inline constexpr size_t kUlidChars = 26;
inline constexpr std::string_view kStateIdPrefix = "st_";
inline constexpr size_t kStateIdChars = 3 + kUlidChars;

// The canonical form of an id that a person typed: upper case and Crockford's look-alikes
// (i, l -> 1; o -> 0) are accepted. INVALID_ARGUMENT naming the text and the expected form.
absl::StatusOr<std::string> ParseStateId(std::string_view text);

// OK for a canonical id only. INVALID_ARGUMENT naming the text and the expected form.
absl::Status ValidateStateId(std::string_view id);

// The millisecond that is written in a canonical id.
absl::Time StateIdTime(std::string_view id);

// Makes ids that are unique and, within one generator, strictly ascending, also within one
// millisecond and when the clock goes back. Thread-safe.
class UlidGenerator {
 public:
  explicit UlidGenerator(Clock clock) : clock_(std::move(clock)) {}

  // 26 characters.
  std::string Next();
  // "st_" + Next().
  std::string NextStateId();

 private:
  struct Ulid {
    uint64_t time_ms = 0;      // 48 bits
    uint16_t random_high = 0;  // the upper 16 of 80 random bits
    uint64_t random_low = 0;
  };
  static std::string Encode(const Ulid& ulid);

  const Clock clock_;
  absl::Mutex mutex_;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
  Ulid last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::statestore
