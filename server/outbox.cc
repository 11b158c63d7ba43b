#include "server/outbox.h"

#include <utility>

namespace vivarium::server {

v1::Delta* Outbox::LastDelta() {
  const bool has_room = !messages_.empty() && messages_.back().has_delta() &&
                        messages_.back().delta().token_ids_size() < kMaxDeltaTokens &&
                        messages_.back().delta().text().size() < kMaxDeltaTextBytes &&
                        num_top_logprobs_ < kMaxDeltaTopLogprobs;
  if (!has_room) {
    messages_.emplace_back();
    num_top_logprobs_ = 0;
  }
  return messages_.back().mutable_delta();
}

void Outbox::AddToken(const engine::TokenEvent& event) {
  v1::Delta* delta = LastDelta();
  delta->mutable_text()->append(event.text);
  delta->add_token_ids(event.token_id);
  if (!event.logprob) return;
  v1::Logprobs* logprobs = delta->add_logprobs();
  logprobs->set_logprob(event.logprob->logprob);
  for (const engine::TokenLogprob& top : event.top_logprobs) {
    v1::TopLogprob* out = logprobs->add_top();
    out->set_token_id(top.token_id);
    out->set_logprob(top.logprob);
    ++num_top_logprobs_;
  }
}

void Outbox::AddText(const std::string& text) {
  if (!text.empty()) LastDelta()->mutable_text()->append(text);
}

v1::GenerateResponse Outbox::Take() {
  v1::GenerateResponse message = std::move(messages_.front());
  messages_.pop_front();
  return message;
}

}  // namespace vivarium::server
