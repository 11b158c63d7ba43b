#include "server/prompt_memory.h"

#include <algorithm>
#include <iterator>

namespace vivarium::server {
namespace {

size_t SharedTokens(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

}  // namespace

size_t PromptMemory::Remember(const std::string& tenant, std::span<const int32_t> prompt) {
  prompt = prompt.first(std::min(prompt.size(), limits_.max_prompt_tokens));
  Key key(tenant, std::vector<int32_t>(prompt.begin(), prompt.end()));
  absl::MutexLock lock(&mutex_);
  size_t num_shared = 0;
  const auto compare = [&](Prompts::iterator neighbour) {
    if (neighbour->first.first != tenant) return;
    num_shared = std::max(num_shared, SharedTokens(neighbour->first.second, key.second));
  };
  const auto next = prompts_.lower_bound(key);
  if (next != prompts_.end()) compare(next);
  if (next != prompts_.begin()) compare(std::prev(next));
  const auto [it, is_new] = prompts_.try_emplace(std::move(key), 0);
  if (is_new) {
    num_tokens_ += it->first.second.size();
  } else {
    by_use_.erase(it->second);
  }
  it->second = ++num_uses_;
  by_use_.emplace(it->second, it);
  Trim();
  return num_shared;
}

void PromptMemory::Trim() {
  while (prompts_.size() > limits_.max_prompts || num_tokens_ > limits_.max_tokens) {
    const auto oldest = by_use_.begin();
    num_tokens_ -= oldest->second->first.second.size();
    prompts_.erase(oldest->second);
    by_use_.erase(oldest);
  }
}

size_t PromptMemory::num_prompts() const {
  absl::MutexLock lock(&mutex_);
  return prompts_.size();
}

size_t PromptMemory::num_tokens() const {
  absl::MutexLock lock(&mutex_);
  return num_tokens_;
}

}  // namespace vivarium::server
