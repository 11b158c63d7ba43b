#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <functional>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/sampling_math.h"

namespace vivarium::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Bins of one round of selection: three rounds of 11 bits tell all orders of logits apart.
constexpr int kBinBits = 11;
constexpr int64_t kNumBins = int64_t{1} << kBinBits;
// A draw finds the block in which the sum of weights passes the random number, then the piece of
// it, then the id.
constexpr int64_t kBlockIds = 1024;
constexpr int64_t kPieceIds = 64;

// One row's logits, largest and scale, and the passes over them.
class Row {
 public:
  Row(const OpTable* ops, const float* logits, int64_t num_ids, const LogitRange& range,
      float scale)
      : ops_(ops), range_(range) {
    pass_.logits = logits;
    pass_.num_ids = num_ids;
    pass_.max_logit = range.max;
    pass_.scale = scale;
    pass_.min_weight = 1;
    SetCut({});
  }

  const LogitCut& cut() const { return cut_; }
  // Narrows the cut to the k largest of what passes; k is less than that.
  void KeepTopK(uint64_t k) {
    Select(OrderedLogit(range_.min), /*by_weight=*/false, [k](uint64_t) { return k; });
  }
  // Narrows the cut to the fewest of the largest whose weights sum to at least top_p of all.
  void KeepTopP(float top_p) {
    Select(LowestWeighty(pass_.max_logit, pass_.scale), /*by_weight=*/true,
           [top_p](uint64_t total) { return MassAtLeast(top_p, total); });
  }
  void SetMinWeight(uint64_t min_weight) { pass_.min_weight = min_weight; }

  uint64_t TotalWeight() const { return ops_->sum_weights(pass_, 0, pass_.num_ids); }
  int32_t Draw(uint64_t random) const;
  // The n best ids that pass, n being their number; best first.
  void Collect(int32_t n, RankedToken* ranked) const;

 private:
  void SetCut(const LogitCut& cut) {
    cut_ = cut;
    pass_.cut_low = cut.low;
    pass_.cut_last_tied_id = cut.last_tied_id;
  }
  template <typename Wanted>
  void Select(uint32_t low, bool by_weight, const Wanted& wanted_of_total);
  // Cuts at `ordered`, `num_kept` ids of which pass, the lowest; `num_ties` pass now.
  void CutAt(uint32_t ordered, uint64_t num_kept, uint64_t num_ties);

  const OpTable* const ops_;
  const LogitRange range_;
  WeightPass pass_;
  LogitCut cut_;
};

// Radix selection: each round counts (or weighs) the orders of logits in at most kNumBins bins and
// goes on in the bin in which the sum from the top reaches what is wanted.
template <typename Wanted>
void Row::Select(uint32_t low, bool by_weight, const Wanted& wanted_of_total) {
  uint32_t high = OrderedLogit(range_.max);
  low = std::max(low, cut_.low);
  std::array<uint64_t, kNumBins> bins;
  uint64_t wanted = 0;
  for (bool is_first = true;; is_first = false) {
    const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - kBinBits);
    const auto num_bins = static_cast<int64_t>((high - low) >> shift) + 1;
    std::fill_n(bins.begin(), num_bins, 0);
    ops_->count_by_order({&pass_, low, high, shift, by_weight, bins.data()});
    if (is_first) {
      uint64_t total = 0;
      for (int64_t bin = 0; bin < num_bins; ++bin) total += bins[static_cast<size_t>(bin)];
      wanted = wanted_of_total(total);
    }
    uint32_t bin = 0;
    while (bins[bin] < wanted) wanted -= bins[bin++];
    high -= bin << shift;
    if (shift == 0) {
      const uint64_t each =
          by_weight ? LogitWeight(LogitOfOrdered(high), pass_.max_logit, pass_.scale) : 1;
      CutAt(high, (wanted + each - 1) / each, bins[bin] / each);
      return;
    }
    const uint32_t width = (1u << shift) - 1;
    low = std::max(low, high > width ? high - width : 0);
  }
}

void Row::CutAt(uint32_t ordered, uint64_t num_kept, uint64_t num_ties) {
  LogitCut cut = {ordered, cut_.low == ordered ? cut_.last_tied_id : LogitCut{}.last_tied_id};
  if (num_kept < num_ties) {
    cut.last_tied_id = static_cast<int32_t>(
        ops_->find_nth_ordered(pass_.logits, pass_.num_ids, ordered, num_kept - 1));
  }
  SetCut(cut);
}

int32_t Row::Draw(uint64_t random) const {
  std::array<uint64_t, kMaxSampledIds / kBlockIds> block_weights;
  uint64_t kept = 0;
  for (int64_t begin = 0; begin < pass_.num_ids; begin += kBlockIds) {
    const uint64_t weight =
        ops_->sum_weights(pass_, begin, std::min(begin + kBlockIds, pass_.num_ids));
    block_weights[static_cast<size_t>(begin / kBlockIds)] = weight;
    kept += weight;
  }
  uint64_t left = ScaleRandom(random, kept);
  size_t block = 0;
  while (left >= block_weights[block]) left -= block_weights[block++];
  int64_t id = static_cast<int64_t>(block) * kBlockIds;
  for (;; id += kPieceIds) {
    const uint64_t weight = ops_->sum_weights(pass_, id, std::min(id + kPieceIds, pass_.num_ids));
    if (left < weight) break;
    left -= weight;
  }
  for (;; ++id) {
    const uint64_t weight = ops_->sum_weights(pass_, id, id + 1);
    if (left < weight) return static_cast<int32_t>(id);
    left -= weight;
  }
}

void Row::Collect(int32_t n, RankedToken* ranked) const {
  std::array<uint64_t, kMaxTopLogprobs> keys;  // order, then lower ids: larger = better
  int32_t num_found = 0;
  for (int64_t id = 0; id < pass_.num_ids && num_found < n; ++id) {
    const uint32_t ordered = OrderedLogit(pass_.logits[id]);
    if (!PassesCut(cut_, ordered, static_cast<int32_t>(id))) continue;
    keys[static_cast<size_t>(num_found++)] =
        (uint64_t{ordered} << 32) | (0xffffffffu - static_cast<uint32_t>(id));
  }
  std::sort(keys.begin(), keys.begin() + num_found, std::greater<>());
  for (int32_t i = 0; i < num_found; ++i) {
    ranked[i].token_id =
        static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(keys[static_cast<size_t>(i)]));
  }
}

int32_t Sample(const OpTable* ops, const SampleRow& row, const float* logits, int64_t num_ids,
               const LogitRange& range) {
  if (row.temperature == 0.0f) {
    return static_cast<int32_t>(ops->find_logit(logits, num_ids, range.max));
  }
  Row passes(ops, logits, num_ids, range, WeightScale(row.temperature));
  if (row.top_k > 0 && row.top_k < num_ids) passes.KeepTopK(static_cast<uint64_t>(row.top_k));
  if (row.top_p < 1.0f) passes.KeepTopP(row.top_p);
  passes.SetMinWeight(MassAtLeast(row.min_p, kWeightOne));
  return passes.Draw(RandomBits(row.seed, row.position));
}

// The row's token, status and log-probabilities; `unedited` is scratch for its edits.
SampledToken SampleOneRow(const OpTable* ops, const SampleRow& row, float* logits, int64_t num_ids,
                          const LogitEdit* edits, float* unedited, RankedToken* top) {
  SampledToken token = {-1, SampleStatus::kOk, 0.0f, 0.0f};
  const LogitRange raw_range = ops->logit_range(logits, num_ids);
  if (raw_range.has_bad) {
    const float* bad =
        std::find_if(logits, logits + num_ids, [](float logit) { return !(logit < kInfinity); });
    return {static_cast<int32_t>(bad - logits), SampleStatus::kBadLogit, *bad, 0.0f};
  }
  for (int32_t i = 0; i < row.num_edits; ++i) {
    float& logit = logits[edits[i].token_id];
    unedited[i] = logit;
    logit = EditedLogit(logit, edits[i], row);
  }
  const LogitRange range = row.num_edits == 0 ? raw_range : ops->logit_range(logits, num_ids);
  if (range.max == -kInfinity) {
    token.status = SampleStatus::kNothingLeft;
  } else {
    token.token_id = row.given_id >= 0 ? row.given_id : Sample(ops, row, logits, num_ids, range);
  }
  for (int32_t i = 0; i < row.num_edits; ++i) logits[edits[i].token_id] = unedited[i];
  if (token.status != SampleStatus::kOk || row.num_top_logprobs < 0) return token;

  Row raw(ops, logits, num_ids, raw_range, kWeightLog2E);
  const double log_sum = LogSumOf(raw_range.max, raw.TotalWeight());
  token.logprob = LogprobOf(logits[token.token_id], log_sum);
  const auto num_top = static_cast<int32_t>(std::min<int64_t>(row.num_top_logprobs, num_ids));
  if (num_top == 0) return token;
  if (num_top < num_ids) raw.KeepTopK(static_cast<uint64_t>(num_top));
  raw.Collect(num_top, top);
  for (int32_t i = 0; i < num_top; ++i) {
    top[i].logprob = LogprobOf(logits[top[i].token_id], log_sum);
  }
  return token;
}

}  // namespace

void CpuBackend::SampleTokens(const SampleTokensParams& params) {
  assert(params.num_ids >= 1 && params.num_ids <= kMaxSampledIds);
  const auto sample = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const SampleRow& row = params.rows[r];
      if (row.logit_row < 0) continue;
      assert(row.num_top_logprobs <= kMaxTopLogprobs);
      params.tokens[r] = SampleOneRow(
          ops_, row, params.logits + row.logit_row * params.logits_stride, params.num_ids,
          row.num_edits == 0 ? nullptr : params.edits + row.edits_begin,
          row.num_edits == 0 ? nullptr : params.unedited + row.edits_begin,
          row.num_top_logprobs <= 0 ? nullptr : params.top + r * kMaxTopLogprobs);
    }
  };
  pool_->ParallelFor(params.num_rows, 1, sample);
}

}  // namespace vivarium::kernels
