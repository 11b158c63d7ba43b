#include "statestore/state_id.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace vivarium::statestore {
namespace {

constexpr char kAlphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";  // no i, l, o, u
constexpr uint64_t kTimeBits = 48;
constexpr uint64_t kMaxTimeMs = (uint64_t{1} << kTimeBits) - 1;
constexpr size_t kTimeChars = 10;
constexpr size_t kMaxEchoedBytes = 64;  // of a malformed id, in the error

// The digit's value, or -1.
int DigitValue(char c) {
  for (int value = 0; value < 32; ++value) {
    if (kAlphabet[value] == c) return value;
  }
  return -1;
}

absl::Status Malformed(std::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat(
      "state id \"", absl::CHexEscape(std::string(text.substr(0, kMaxEchoedBytes))),
      "\": expected \"st_\" and 26 characters of 0-9 a-z without i, l, o, u, the first 0-7"));
}

}  // namespace

absl::StatusOr<std::string> ParseStateId(std::string_view text) {
  if (text.size() != kStateIdChars) return Malformed(text);
  std::string id(text);
  for (size_t i = 0; i < id.size(); ++i) {
    char& c = id[i];
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (i < kStateIdPrefix.size()) continue;
    if (c == 'i' || c == 'l') c = '1';
    if (c == 'o') c = '0';
  }
  if (!ValidateStateId(id).ok()) return Malformed(text);
  return id;
}

absl::Status ValidateStateId(std::string_view id) {
  if (id.size() != kStateIdChars || !id.starts_with(kStateIdPrefix)) return Malformed(id);
  const std::string_view ulid = id.substr(kStateIdPrefix.size());
  if (!std::all_of(ulid.begin(), ulid.end(), [](char c) { return DigitValue(c) >= 0; })) {
    return Malformed(id);
  }
  // 26 characters hold 130 bits; a ULID has 128.
  if (ulid[0] > '7') return Malformed(id);
  return absl::OkStatus();
}

absl::Time StateIdTime(std::string_view id) {
  uint64_t time_ms = 0;
  for (char c : id.substr(kStateIdPrefix.size(), kTimeChars)) {
    time_ms = time_ms << 5 | static_cast<uint64_t>(DigitValue(c));
  }
  return absl::FromUnixMillis(static_cast<int64_t>(time_ms));
}

std::string UlidGenerator::Next() {
  const int64_t now_ms = absl::ToUnixMillis(clock_());
  const uint64_t time_ms =
      std::min<uint64_t>(static_cast<uint64_t>(std::max<int64_t>(now_ms, 0)), kMaxTimeMs);
  absl::MutexLock lock(&mutex_);
  if (time_ms > last_.time_ms) {
    // The top random bit starts at zero, so that a millisecond has room for 2^79 successors.
    last_ = {time_ms, static_cast<uint16_t>(absl::Uniform<uint16_t>(random_) >> 1),
             absl::Uniform<uint64_t>(random_)};
  } else if (++last_.random_low == 0 && ++last_.random_high == 0) {
    ++last_.time_ms;
  }
  return Encode(last_);
}

std::string UlidGenerator::NextStateId() { return absl::StrCat("st_", Next()); }

std::string UlidGenerator::Encode(const Ulid& ulid) {
  std::string text(kUlidChars, '0');
  uint64_t time_ms = ulid.time_ms;
  for (size_t i = kTimeChars; i-- > 0; time_ms >>= 5) text[i] = kAlphabet[time_ms & 31];
  // 80 random bits are 16 characters of 5 bits, taken from the low end.
  uint64_t low = ulid.random_low;
  uint64_t high = ulid.random_high;
  for (size_t i = kUlidChars; i-- > kTimeChars;) {
    text[i] = kAlphabet[low & 31];
    low = low >> 5 | high << 59;
    high >>= 5;
  }
  return text;
}

}  // namespace vivarium::statestore
