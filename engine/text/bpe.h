// Byte pair encoding of one word (Sennrich et al. 2016, arXiv:1508.07909, over bytes as in GPT-2).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/tokenizer_spec.h"

namespace vivarium::engine {

// Bounds of the cache that one call of Encode has for the words it meets again.
inline constexpr size_t kMaxCachedWords = size_t{1} << 14;
inline constexpr size_t kMaxCachedWordBytes = 64;
// Up to this length a word is merged by scanning for the best pair; above, through a heap. Both
// give the same tokens.
inline constexpr size_t kMaxScannedSymbols = 32;

// A BPE model. Immutable; const methods are thread-safe, each caller with its own Work.
class BpeModel {
 public:
  // The memory of one Encode: a cache (so there is none to share or lock) and scratch space.
  // Its views into the ids of earlier words make it belong to one output vector.
  class Work {
   public:
    size_t num_cached_words() const { return cache_.size(); }

    // The longest word needs 16 + 8 bytes here per byte, and the heap's growth.
    struct Symbol {
      int32_t id;
      int32_t previous;  // -1: none
      int32_t next;      // -1: none
      uint32_t rank;     // of the merge with the next symbol, or kNoRank
    };

   private:
    friend class BpeModel;
    struct CachedWord {
      size_t begin;  // into the output
      size_t num_ids;
    };
    absl::flat_hash_map<std::string, CachedWord> cache_;
    std::vector<Symbol> symbols_;
    std::vector<uint64_t> heap_;  // rank << 32 | symbol
  };

  // Special tokens (`is_special(id)`) are never the result of Encode: merges into them are left
  // out. InvalidArgument: a special token is a single byte's token.
  static absl::StatusOr<BpeModel> Create(const TokenizerSpec& spec,
                                         const std::function<bool(int32_t)>& is_special);

  // Appends the ids of `word` (not empty, below 2 GiB): at each step the pair of the lowest rank is
  // merged, the leftmost of equals, until no pair can be. O(n log n).
  // InvalidArgument: a byte has no token.
  absl::Status Encode(std::string_view word, Work* work, std::vector<int32_t>* ids) const;

  // The merging itself, without looking the word up: the twins that Encode chooses from.
  absl::Status MergeByScan(std::string_view word, Work* work, std::vector<int32_t>* ids) const;
  absl::Status MergeByHeap(std::string_view word, Work* work, std::vector<int32_t>* ids) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;
  using Symbol = Work::Symbol;

  struct RankedMerge {
    uint32_t rank;
    int32_t result;
  };

  BpeModel() = default;

  // Symbols of the word's bytes, with the ranks of neighbours.
  absl::Status StartWord(std::string_view word, Work* work) const;
  uint32_t Rank(int32_t left, int32_t right) const;
  absl::Status Merge(std::string_view word, Work* work, std::vector<int32_t>* ids) const;

  std::array<int32_t, 256> id_of_byte_;                // -1: none
  absl::flat_hash_map<uint64_t, RankedMerge> merges_;  // left << 32 | right
  std::vector<int32_t> result_of_rank_;
  // Words known to be one token: every token that merging its own bytes leads to, or, if the
  // tokenizer ignores merges, every token.
  absl::flat_hash_map<std::string, int32_t> whole_words_;
};

}  // namespace vivarium::engine
