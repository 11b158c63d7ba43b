// The result of a finished Generate call as bytes, and back: what an idempotent retry is answered.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "server/outbox.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::server {

// Of the messages but the last; beyond it the deltas are left out (generation.proto, Started).
inline constexpr size_t kMaxRecordedBytes = size_t{8} << 20;
inline constexpr size_t kMaxRecordedMessages = size_t{1} << 20;

// Collects a stream's messages. Not thread-safe.
class ResultRecorder {
 public:
  void AddToken(const engine::TokenEvent& event);
  void AddText(const std::string& text);
  void Add(const v1::GenerateResponse& message);  // started, saved
  // Everything, and `finished`, as one string.
  std::string Encode(const v1::Finished& finished) const;

 private:
  bool HasRoomFor(size_t bytes);

  Outbox outbox_;
  size_t size_bytes_ = 0;  // an estimate from above
  bool overflowed_ = false;
};

// Started (with `replayed` set), deltas and saved states, finished. INTERNAL for bytes that Encode
// did not make.
absl::StatusOr<std::vector<v1::GenerateResponse>> DecodeResult(const std::string& result);

}  // namespace vivarium::server
