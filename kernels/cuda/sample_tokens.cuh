// SampleTokens: one block a row, which stays in the second-level cache for its few passes. Sums are
// of integers and selection is by radix, so no order of threads shows in the results; the passes
// are those of cpu/sample_tokens.cc.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"
#include "kernels/sampling_math.h"

namespace vivarium::kernels::cuda {

inline constexpr int kSampleThreads = 1024;
inline constexpr int kSampleWarps = kSampleThreads / kWarpSize;
inline constexpr int kSampleBinBits = 11;
inline constexpr int kSampleBins = 1 << kSampleBinBits;
static_assert(kSampleBins == kSampleWarps * kWarpSize * 2, "two bins a thread");

struct SampleShared {
  uint32_t bins_low[kSampleBins];   // the bins' sums, in halves: 64-bit atomic additions to
  uint32_t bins_high[kSampleBins];  // shared memory are loops
  uint64_t warp_sums[kSampleWarps];
  uint64_t warp_best[kSampleWarps];
  uint32_t warp_lowest[kSampleWarps];
  uint32_t warp_first_bad[kSampleWarps];
  uint64_t found_sum, found_rest;  // of the bin found
  uint64_t top_keys[kMaxTopLogprobs];
  uint32_t num_top;
  int32_t found;  // a bin or an id
};

// The row's passes. Every thread of the block calls each function, with equal arguments.
class SamplePasses {
 public:
  __device__ SamplePasses(SampleShared* shared, const float* logits, int64_t num_ids)
      : shared_(*shared),
        logits_(logits),
        num_ids_(num_ids),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpSize),
        warp_(thread_ / kWarpSize) {
    const int64_t per_warp = (num_ids + kSampleThreads - 1) / kSampleThreads * kWarpSize;
    warp_begin_ = warp_ * per_warp;
    warp_end_ = warp_begin_ + per_warp < num_ids ? warp_begin_ + per_warp : num_ids;
  }

  // Finds the largest and the smallest logit, and the first that is NaN or +infinity. The logits
  // may have been written by other threads of the block just before.
  __device__ void FindRange() {
    __syncthreads();
    uint64_t best = 0;
    uint32_t lowest = ~0u, first_bad = ~0u;
    for (int64_t id = thread_; id < num_ids_; id += kSampleThreads) {
      const float logit = logits_[id];
      if (!(logit <= kMaxFiniteFloat) && static_cast<uint32_t>(id) < first_bad) {
        first_bad = static_cast<uint32_t>(id);
      }
      const uint32_t ordered = OrderedLogit(logit);
      const uint64_t key = KeyOf(ordered, id);
      best = key > best ? key : best;
      lowest = ordered < lowest ? ordered : lowest;
    }
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      const uint64_t other_best = __shfl_xor_sync(kFullWarp, best, mask);
      const uint32_t other_lowest = __shfl_xor_sync(kFullWarp, lowest, mask);
      const uint32_t other_bad = __shfl_xor_sync(kFullWarp, first_bad, mask);
      best = other_best > best ? other_best : best;
      lowest = other_lowest < lowest ? other_lowest : lowest;
      first_bad = other_bad < first_bad ? other_bad : first_bad;
    }
    if (lane_ == 0) {
      shared_.warp_best[warp_] = best;
      shared_.warp_lowest[warp_] = lowest;
      shared_.warp_first_bad[warp_] = first_bad;
    }
    __syncthreads();
    for (int warp = 0; warp < kSampleWarps; ++warp) {
      if (shared_.warp_best[warp] > best) best = shared_.warp_best[warp];
      if (shared_.warp_lowest[warp] < lowest) lowest = shared_.warp_lowest[warp];
      if (shared_.warp_first_bad[warp] < first_bad) first_bad = shared_.warp_first_bad[warp];
    }
    best_id_ = IdOf(best);
    max_order_ = static_cast<uint32_t>(best >> 32);
    max_logit_ = LogitOfOrdered(max_order_);
    min_order_ = lowest;
    first_bad_ = static_cast<int32_t>(first_bad);
    cut_ = {};
    min_weight_ = 1;
  }

  __device__ int32_t first_bad() const { return first_bad_; }  // -1 = none
  __device__ int32_t best_id() const { return best_id_; }
  __device__ float max_logit() const { return max_logit_; }

  __device__ void SetScale(float scale) { scale_ = scale; }
  __device__ void SetMinWeight(uint64_t min_weight) { min_weight_ = min_weight; }
  // Narrows the cut to the k largest of what passes; k is less than that.
  __device__ void KeepTopK(uint64_t k) {
    Select<false>(min_order_, [k](uint64_t) { return k; });
  }
  // Narrows the cut to the fewest of the largest whose weights sum to at least top_p of all.
  __device__ void KeepTopP(float top_p) {
    Select<true>(LowestWeighty(max_logit_, scale_),
                 [top_p](uint64_t total) { return MassAtLeast(top_p, total); });
  }

  __device__ uint64_t TotalWeight() {
    return SumOverIds([this](int64_t id) { return WeightAt(id); });
  }
  __device__ int32_t Draw(uint64_t random) {
    const auto weight = [this](int64_t id) { return WeightAt(id); };
    const uint64_t total = SumOverIds(weight);
    return Locate(ScaleRandom(random, total), weight);
  }

  // The n best ids, n being the number of those that pass: thread i < n gets the i-th best.
  __device__ int32_t CollectTop(int32_t n) {
    if (thread_ == 0) shared_.num_top = 0;
    __syncthreads();
    for (int64_t id = thread_; id < num_ids_; id += kSampleThreads) {
      const uint32_t ordered = OrderedLogit(logits_[id]);
      if (!PassesCut(cut_, ordered, static_cast<int32_t>(id))) continue;
      shared_.top_keys[atomicAdd(&shared_.num_top, 1u)] = KeyOf(ordered, id);
    }
    __syncthreads();
    for (int32_t i = 0; i < n; ++i) {
      int rank = 0;
      for (int32_t j = 0; j < n; ++j) rank += shared_.top_keys[j] > shared_.top_keys[i] ? 1 : 0;
      if (rank == thread_) return IdOf(shared_.top_keys[i]);
    }
    return -1;
  }

 private:
  __device__ static uint64_t KeyOf(uint32_t ordered, int64_t id) {
    return (static_cast<uint64_t>(ordered) << 32) | (0xffffffffu - static_cast<uint32_t>(id));
  }
  __device__ static int32_t IdOf(uint64_t key) {
    return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
  }

  // 0 for an id that does not pass.
  __device__ uint64_t WeightAt(int64_t id) const {
    const float logit = logits_[id];
    if (!PassesCut(cut_, OrderedLogit(logit), static_cast<int32_t>(id))) return 0;
    const uint64_t weight = LogitWeight(logit, max_logit_, scale_);
    return weight >= min_weight_ ? weight : 0;
  }

  __device__ uint64_t WarpTotal(uint64_t value) const {
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      value += __shfl_xor_sync(kFullWarp, value, mask);
    }
    return value;
  }
  // The sum over this lane and those before it.
  __device__ uint64_t WarpPrefix(uint64_t value) const {
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const uint64_t other =
          __shfl_sync(kFullWarp, value, lane_ >= distance ? lane_ - distance : lane_);
      if (lane_ >= distance) value += other;
    }
    return value;
  }
  // Sets warp_sums, and returns their sum.
  __device__ uint64_t ShareWarpSums(uint64_t warp_sum) {
    if (lane_ == 0) shared_.warp_sums[warp_] = warp_sum;
    __syncthreads();
    uint64_t total = 0;
    for (int warp = 0; warp < kSampleWarps; ++warp) total += shared_.warp_sums[warp];
    return total;
  }

  // The sum of value(id) over all ids; each warp has a range of them, for Locate.
  template <typename Value>
  __device__ uint64_t SumOverIds(const Value& value) {
    uint64_t sum = 0;
    for (int64_t id = warp_begin_ + lane_; id < warp_end_; id += kWarpSize) sum += value(id);
    __syncthreads();  // the sums before have been read
    return ShareWarpSums(WarpTotal(sum));
  }
  // The first id up to which value(id) sums to more than `left`, after SumOverIds(value).
  template <typename Value>
  __device__ int32_t Locate(uint64_t left, const Value& value) {
    int warp = 0;
    while (left >= shared_.warp_sums[warp]) left -= shared_.warp_sums[warp++];
    if (warp == warp_) {
      for (int64_t begin = warp_begin_;; begin += kWarpSize) {
        const int64_t id = begin + lane_;
        const uint64_t own = id < warp_end_ ? value(id) : 0;
        const uint64_t prefix = WarpPrefix(own);
        const uint64_t sum = __shfl_sync(kFullWarp, prefix, kWarpSize - 1);
        if (left < sum) {
          if (left < prefix && left >= prefix - own) shared_.found = static_cast<int32_t>(id);
          break;
        }
        left -= sum;
      }
    }
    __syncthreads();
    return shared_.found;
  }

  __device__ void AddToBin(uint32_t bin, uint64_t value) {
    const auto low = static_cast<uint32_t>(value);
    const uint32_t before = atomicAdd(&shared_.bins_low[bin], low);
    const auto high = static_cast<uint32_t>(value >> 32) + (before + low < before ? 1u : 0u);
    if (high != 0) atomicAdd(&shared_.bins_high[bin], high);
  }
  __device__ uint64_t BinSum(int bin) const {
    return static_cast<uint64_t>(shared_.bins_high[bin]) << 32 | shared_.bins_low[bin];
  }

  // Radix selection: each round counts (or weighs) the orders of logits in at most kSampleBins bins
  // and goes on in the bin in which the sum from the top reaches what is wanted.
  template <bool kByWeight, typename Wanted>
  __device__ void Select(uint32_t low, const Wanted& wanted_of_total) {
    uint32_t high = max_order_;
    low = low > cut_.low ? low : cut_.low;
    uint64_t wanted = 0;
    for (bool is_first = true;; is_first = false) {
      int shift = 0;
      while ((high - low) >> shift >= kSampleBins) ++shift;
      FillBins<kByWeight>(low, high, shift);
      const uint64_t own = BinSum(2 * thread_) + BinSum(2 * thread_ + 1);
      const uint64_t total = ShareWarpSums(WarpTotal(own));
      if (is_first) wanted = wanted_of_total(total);
      FindBin(wanted, own);
      const auto bin = static_cast<uint32_t>(shared_.found);
      wanted = shared_.found_rest;
      const uint64_t bin_sum = shared_.found_sum;
      high -= bin << shift;
      if (shift == 0) {
        const uint64_t each = kByWeight ? LogitWeight(LogitOfOrdered(high), max_logit_, scale_) : 1;
        CutAt(high, (wanted + each - 1) / each, bin_sum / each);
        return;
      }
      const uint32_t width = (1u << shift) - 1;
      const uint32_t bin_low = high > width ? high - width : 0;
      low = low > bin_low ? low : bin_low;
    }
  }

  template <bool kByWeight>
  __device__ void FillBins(uint32_t low, uint32_t high, int shift) {
    __syncthreads();  // the bins before have been read
    for (int bin = thread_; bin < kSampleBins; bin += kSampleThreads) {
      shared_.bins_low[bin] = 0;
      shared_.bins_high[bin] = 0;
    }
    __syncthreads();
    for (int64_t id = thread_; id < num_ids_; id += kSampleThreads) {
      const float logit = logits_[id];
      const uint32_t ordered = OrderedLogit(logit);
      if (ordered < low || ordered > high) continue;
      if (!PassesCut(cut_, ordered, static_cast<int32_t>(id))) continue;
      const uint64_t value = kByWeight ? LogitWeight(logit, max_logit_, scale_) : 1;
      if (value != 0) AddToBin((high - ordered) >> shift, value);
    }
    __syncthreads();
  }

  // The bin in which the sum reaches `wanted`, what of it is wanted of that bin, and its sum; `own`
  // is the sum of this thread's two bins.
  __device__ void FindBin(uint64_t wanted, uint64_t own) {
    int warp = 0;
    while (shared_.warp_sums[warp] < wanted) wanted -= shared_.warp_sums[warp++];
    if (warp == warp_) {
      const uint64_t before = WarpPrefix(own) - own;
      if (before < wanted && wanted <= before + own) {
        wanted -= before;
        int bin = 2 * thread_;
        if (BinSum(bin) < wanted) wanted -= BinSum(bin++);
        shared_.found = bin;
        shared_.found_rest = wanted;
        shared_.found_sum = BinSum(bin);
      }
    }
    __syncthreads();
  }

  // Cuts at `ordered`, `num_kept` ids of which pass, the lowest; `num_ties` pass now.
  __device__ void CutAt(uint32_t ordered, uint64_t num_kept, uint64_t num_ties) {
    LogitCut cut{};
    cut.low = ordered;
    if (cut_.low == ordered) cut.last_tied_id = cut_.last_tied_id;
    if (num_kept < num_ties) {
      const auto is_tied = [this, ordered](int64_t id) {
        return static_cast<uint64_t>(OrderedLogit(logits_[id]) == ordered ? 1 : 0);
      };
      SumOverIds(is_tied);
      cut.last_tied_id = Locate(num_kept - 1, is_tied);
    }
    cut_ = cut;
  }

  SampleShared& shared_;
  const float* const logits_;
  const int64_t num_ids_;
  const int thread_, lane_, warp_;
  int64_t warp_begin_, warp_end_;  // this warp's ids
  int32_t best_id_ = 0, first_bad_ = -1;
  uint32_t max_order_ = 0, min_order_ = 0;
  float max_logit_ = 0.0f, scale_ = 1.0f;
  LogitCut cut_{};
  uint64_t min_weight_ = 1;
};

// The token that the row asks for, from edited logits; max_logit() is finite.
__device__ __forceinline__ int32_t ChooseToken(SamplePasses* passes, const SampleRow& row,
                                               int64_t num_ids) {
  if (row.given_id >= 0) return row.given_id;
  if (row.temperature == 0.0f) return passes->best_id();
  passes->SetScale(WeightScale(row.temperature));
  if (row.top_k > 0 && row.top_k < num_ids) passes->KeepTopK(static_cast<uint64_t>(row.top_k));
  if (row.top_p < 1.0f) passes->KeepTopP(row.top_p);
  passes->SetMinWeight(MassAtLeast(row.min_p, kWeightOne));
  return passes->Draw(RandomBits(row.seed, row.position));
}

// Grid (num_rows), kSampleThreads threads, one SampleShared.
static __global__ void __launch_bounds__(kSampleThreads)
    SampleTokensKernel(SampleTokensParams params) {
  DYNAMIC_SHARED(SampleShared, shared);
  const int64_t r = blockIdx.x;
  const SampleRow row = params.rows[r];
  if (row.logit_row < 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  float* logits = params.logits + row.logit_row * params.logits_stride;
  SamplePasses passes(shared, logits, params.num_ids);
  passes.FindRange();
  SampledToken token = {-1, SampleStatus::kOk, 0.0f, 0.0f};
  if (passes.first_bad() >= 0) {
    token.token_id = passes.first_bad();
    token.status = SampleStatus::kBadLogit;
    token.bad_logit = logits[token.token_id];
    if (thread == 0) params.tokens[r] = token;
    return;
  }
  if (row.num_edits > 0) {
    __syncthreads();  // all logits have been read
    for (int32_t i = row.edits_begin + thread; i < row.edits_begin + row.num_edits;
         i += kSampleThreads) {
      const LogitEdit edit = params.edits[i];
      params.unedited[i] = logits[edit.token_id];
      logits[edit.token_id] = EditedLogit(params.unedited[i], edit, row);
    }
    passes.FindRange();
  }
  if (passes.max_logit() < -kMaxFiniteFloat) {
    token.status = SampleStatus::kNothingLeft;
  } else {
    token.token_id = ChooseToken(&passes, row, params.num_ids);
  }
  if (row.num_edits > 0) {
    __syncthreads();  // all logits have been read
    for (int32_t i = row.edits_begin + thread; i < row.edits_begin + row.num_edits;
         i += kSampleThreads) {
      logits[params.edits[i].token_id] = params.unedited[i];
    }
  }
  if (token.status == SampleStatus::kOk && row.num_top_logprobs >= 0) {
    passes.FindRange();
    passes.SetScale(kWeightLog2E);
    const double log_sum = LogSumOf(passes.max_logit(), passes.TotalWeight());
    token.logprob = LogprobOf(logits[token.token_id], log_sum);
    const auto num_top = static_cast<int32_t>(
        row.num_top_logprobs < params.num_ids ? row.num_top_logprobs : params.num_ids);
    if (num_top > 0) {
      if (num_top < params.num_ids) passes.KeepTopK(static_cast<uint64_t>(num_top));
      const int32_t id = passes.CollectTop(num_top);
      if (thread < num_top) {
        params.top[r * kMaxTopLogprobs + thread] = {id, LogprobOf(logits[id], log_sum)};
      }
    }
  }
  if (thread == 0) params.tokens[r] = token;
}

inline void LaunchSampleTokens(const SampleTokensParams& params, cudaStream_t stream) {
  LAUNCH(SampleTokensKernel, dim3(static_cast<unsigned>(params.num_rows)), dim3(kSampleThreads),
         sizeof(SampleShared), stream, params);
}

}  // namespace vivarium::kernels::cuda
