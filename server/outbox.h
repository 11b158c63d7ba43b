// Outbox: what a stream's client has not been sent yet. Tokens merge into the last delta, so a
// client that reads slower than the server generates gets fewer, larger messages.
#pragma once

#include <cstddef>
#include <deque>
#include <string>

#include "engine/runtime/engine.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::server {

// A delta that has one of these begins a new one: messages stay far below 4 MiB, the usual limit of
// clients.
inline constexpr int kMaxDeltaTokens = 4096;
inline constexpr size_t kMaxDeltaTextBytes = size_t{1} << 20;
inline constexpr int kMaxDeltaTopLogprobs = 1 << 16;

// Bounded by its stream: max_tokens tokens, and one message for every state saved.
// Not thread-safe.
class Outbox {
 public:
  void AddToken(const engine::TokenEvent& event);
  void AddText(const std::string& text);  // none: nothing is added
  void Add(v1::GenerateResponse message) { messages_.push_back(std::move(message)); }
  bool empty() const { return messages_.empty(); }
  v1::GenerateResponse Take();
  void Clear() { messages_.clear(); }

  const std::deque<v1::GenerateResponse>& messages() const { return messages_; }

 private:
  v1::Delta* LastDelta();

  std::deque<v1::GenerateResponse> messages_;
  int num_top_logprobs_ = 0;  // of the last delta
};

}  // namespace vivarium::server
