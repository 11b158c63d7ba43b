#include "engine/text/bpe.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/text/byte_level.h"

namespace vivarium::engine {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Create(const TokenizerSpec& spec,
                                          const std::function<bool(int32_t)>& is_special) {
  BpeModel model;
  model.id_of_byte_.fill(-1);
  // Entries outside of the byte alphabet (control tokens, mostly) can't come from merging.
  std::vector<std::pair<std::string, int32_t>> words;
  for (const auto& [key, id] : spec.vocab) {
    std::optional<std::string> bytes = ReadByteAlphabet(key);
    if (!bytes.has_value()) continue;
    if (bytes->size() == 1) {
      const auto byte = static_cast<uint8_t>((*bytes)[0]);
      if (is_special(id)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "token ", id, " '", key, "' is special and the only token of byte ", byte));
      }
      model.id_of_byte_[byte] = id;
    }
    if (!is_special(id)) words.emplace_back(*std::move(bytes), id);
  }
  model.result_of_rank_.resize(spec.merges.size(), -1);
  model.merges_.reserve(spec.merges.size());
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right, result] = spec.merges[rank];
    if (is_special(result)) continue;
    // A pair listed twice counts where it stands last.
    model.merges_[PairKey(left, right)] = {static_cast<uint32_t>(rank), result};
    model.result_of_rank_[rank] = result;
  }
  Work work;
  std::vector<int32_t> ids;
  for (const auto& [bytes, id] : words) {
    if (!spec.ignore_merges) {
      ids.clear();
      const absl::Status status = model.Merge(bytes, &work, &ids);
      if (!status.ok() || ids.size() != 1 || ids[0] != id) continue;
    }
    model.whole_words_.emplace(bytes, id);
  }
  return model;
}

uint32_t BpeModel::Rank(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? kNoRank : it->second.rank;
}

absl::Status BpeModel::StartWord(std::string_view word, Work* work) const {
  std::vector<Symbol>& symbols = work->symbols_;
  symbols.resize(word.size());
  const auto size = static_cast<int32_t>(word.size());
  for (int32_t i = 0; i < size; ++i) {
    const auto byte = static_cast<uint8_t>(word[i]);
    if (id_of_byte_[byte] < 0) {
      return absl::InvalidArgumentError(absl::StrCat("the vocabulary has no token for byte 0x",
                                                     absl::Hex(byte, absl::kZeroPad2), ", at ", i,
                                                     " of a word of ", word.size(), " bytes"));
    }
    symbols[i] = {id_of_byte_[byte], i - 1, i + 1 < size ? i + 1 : -1, kNoRank};
  }
  for (int32_t i = 0; i + 1 < size; ++i) {
    symbols[i].rank = Rank(symbols[i].id, symbols[i + 1].id);
  }
  return absl::OkStatus();
}

absl::Status BpeModel::MergeByScan(std::string_view word, Work* work,
                                   std::vector<int32_t>* ids) const {
  if (absl::Status status = StartWord(word, work); !status.ok()) return status;
  std::vector<Symbol>& symbols = work->symbols_;
  size_t count = symbols.size();
  while (true) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoRank) break;
    symbols[best].id = result_of_rank_[symbols[best].rank];
    std::copy(symbols.begin() + static_cast<ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<ptrdiff_t>(count),
              symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    --count;
    symbols[best].rank = best + 1 < count ? Rank(symbols[best].id, symbols[best + 1].id) : kNoRank;
    if (best > 0) symbols[best - 1].rank = Rank(symbols[best - 1].id, symbols[best].id);
  }
  for (size_t i = 0; i < count; ++i) ids->push_back(symbols[i].id);
  return absl::OkStatus();
}

absl::Status BpeModel::MergeByHeap(std::string_view word, Work* work,
                                   std::vector<int32_t>* ids) const {
  if (absl::Status status = StartWord(word, work); !status.ok()) return status;
  std::vector<Symbol>& symbols = work->symbols_;
  std::vector<uint64_t>& heap = work->heap_;
  heap.clear();
  const auto entry = [&symbols](int32_t i) {
    return static_cast<uint64_t>(symbols[i].rank) << 32 | static_cast<uint32_t>(i);
  };
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) {
    if (symbols[i].rank != kNoRank) heap.push_back(entry(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto set_rank = [&](int32_t i) {
    const int32_t next = symbols[i].next;
    symbols[i].rank = next < 0 ? kNoRank : Rank(symbols[i].id, symbols[next].id);
    if (symbols[i].rank == kNoRank) return;
    heap.push_back(entry(i));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  // Each merge removes a symbol and adds at most two entries: at most 3n entries in all.
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    const auto i = static_cast<int32_t>(heap.back() & UINT32_MAX);
    heap.pop_back();
    // A rank names one pair: if it still stands at the symbol, so does the pair.
    if (symbols[i].rank != rank) continue;
    const int32_t gone = symbols[i].next;
    symbols[i].id = result_of_rank_[rank];
    symbols[i].next = symbols[gone].next;
    if (symbols[gone].next >= 0) symbols[symbols[gone].next].previous = i;
    symbols[gone].rank = kNoRank;
    set_rank(i);
    if (symbols[i].previous >= 0) set_rank(symbols[i].previous);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids->push_back(symbols[i].id);
  return absl::OkStatus();
}

absl::Status BpeModel::Merge(std::string_view word, Work* work, std::vector<int32_t>* ids) const {
  return word.size() <= kMaxScannedSymbols ? MergeByScan(word, work, ids)
                                           : MergeByHeap(word, work, ids);
}

absl::Status BpeModel::Encode(std::string_view word, Work* work, std::vector<int32_t>* ids) const {
  const auto whole = whole_words_.find(View(word));
  if (whole != whole_words_.end()) {
    ids->push_back(whole->second);
    return absl::OkStatus();
  }
  if (word.size() > kMaxCachedWordBytes) return Merge(word, work, ids);
  const auto cached = work->cache_.find(View(word));
  if (cached != work->cache_.end()) {
    for (size_t i = 0; i < cached->second.num_ids; ++i) {
      ids->push_back((*ids)[cached->second.begin + i]);
    }
    return absl::OkStatus();
  }
  const size_t begin = ids->size();
  absl::Status status = Merge(word, work, ids);
  if (status.ok() && work->cache_.size() < kMaxCachedWords) {
    work->cache_.emplace(std::string(word), Work::CachedWord{begin, ids->size() - begin});
  }
  return status;
}

}  // namespace vivarium::engine
