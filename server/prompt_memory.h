// PromptMemory: which prompts came lately, so that the second one with a beginning can make it
// reusable for the third.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace vivarium::server {

// Thread-safe. Prompts that were not used the longest go first; of a longer prompt its first
// max_prompt_tokens tokens are remembered.
class PromptMemory {
 public:
  struct Limits {
    size_t max_prompts = 4096;
    size_t max_tokens = 1 << 20;  // of all of them together: 4 MiB
    size_t max_prompt_tokens = 1 << 17;
  };
  PromptMemory() : PromptMemory(Limits()) {}
  explicit PromptMemory(const Limits& limits) : limits_(limits) {}

  // How many first tokens `prompt` shares with an earlier one of the same tenant, at most; then it
  // is remembered itself.
  size_t Remember(const std::string& tenant, std::span<const int32_t> prompt)
      ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_prompts() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_tokens() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Key = std::pair<std::string, std::vector<int32_t>>;  // tenant, tokens
  using Prompts = std::map<Key, uint64_t>;                   // when each was last used

  void Trim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  // In order: what shares the most with a prompt lies next to it.
  Prompts prompts_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Prompts::iterator> by_use_ ABSL_GUARDED_BY(mutex_);
  uint64_t num_uses_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t num_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace vivarium::server
