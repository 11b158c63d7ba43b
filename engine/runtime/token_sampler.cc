#include "engine/runtime/token_sampler.h"

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace vivarium::engine {
namespace {

using kernels::LogitEdit;
using kernels::RankedToken;
using kernels::SampledToken;
using kernels::SampleRow;
using kernels::SampleStatus;

// Of one row: recent tokens, biases, and a request's stop ids with a model's end-of-sequence ids.
constexpr int64_t kMaxBannedIds = kMaxStopTokenIds + 64;
constexpr int64_t kMaxRowEdits = kRecentTokenWindow + kMaxLogitBias + kMaxBannedIds;
// There is room for the edits of so many rows at their most; a step with more runs the op again.
constexpr int64_t kMaxFullRows = 32;

size_t AlignUp(size_t bytes) { return (bytes + 63) / 64 * 64; }

bool IsPenalised(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

int64_t MaxEdits(int64_t max_rows) { return kMaxRowEdits * std::min(max_rows, kMaxFullRows); }

}  // namespace

size_t TokenSampler::DeviceBytes(int32_t max_rows) {
  return Layout(max_rows, MaxEdits(max_rows)).end;
}

TokenSampler::Layout::Layout(int64_t max_rows, int64_t max_edits) {
  const auto num_rows = static_cast<size_t>(max_rows), num_edits = static_cast<size_t>(max_edits);
  rows = 0;
  edits = AlignUp(rows + num_rows * sizeof(SampleRow));
  tokens = AlignUp(edits + num_edits * sizeof(LogitEdit));
  top = tokens + num_rows * sizeof(SampledToken);
  unedited = AlignUp(top + num_rows * kernels::kMaxTopLogprobs * sizeof(RankedToken));
  end = unedited + num_edits * sizeof(float);
}

absl::StatusOr<std::unique_ptr<TokenSampler>> TokenSampler::Create(kernels::Backend* backend,
                                                                   int64_t num_ids,
                                                                   int64_t logits_stride,
                                                                   int32_t max_rows) {
  assert(num_ids >= 1 && num_ids <= kernels::kMaxSampledIds && logits_stride >= num_ids);
  assert(max_rows >= 1);
  const int64_t max_edits = MaxEdits(max_rows);
  std::unique_ptr<TokenSampler> sampler(
      new TokenSampler(backend, num_ids, logits_stride, max_rows, max_edits));
  if (sampler->device_.data() == nullptr || sampler->host_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for sampling: ", max_rows, " rows and ", max_edits, " edits = ",
        sampler->layout_.end, " bytes on the device, ", sampler->layout_.tokens, " on the host"));
  }
  return sampler;
}

TokenSampler::TokenSampler(kernels::Backend* backend, int64_t num_ids, int64_t logits_stride,
                           int64_t max_rows, int64_t max_edits)
    : backend_(backend),
      num_ids_(num_ids),
      logits_stride_(logits_stride),
      max_rows_(max_rows),
      max_edits_(max_edits),
      layout_(max_rows, max_edits),
      device_(backend, layout_.end),
      host_(static_cast<std::byte*>(backend->AllocateHost(layout_.tokens))),
      edit_index_(num_ids),
      tokens_(max_rows),
      top_(max_rows * kernels::kMaxTopLogprobs) {
  rows_ = reinterpret_cast<SampleRow*>(host_ + layout_.rows);
  edits_ = reinterpret_cast<LogitEdit*>(host_ + layout_.edits);
  wanted_.reserve(max_rows);
}

TokenSampler::~TokenSampler() { backend_->FreeHost(host_); }

void TokenSampler::Begin(float* logits) {
  logits_ = logits;
  num_rows_ = first_row_ = num_edits_ = max_top_ = 0;
  wanted_.clear();
}

SampleRow* TokenSampler::AddRow(uint64_t position) {
  assert(num_rows_ < max_rows_);
  SampleRow* row = &rows_[num_rows_ - first_row_];
  *row = {};
  row->logit_row = num_rows_++;
  row->position = position;
  row->given_id = -1;
  return row;
}

void TokenSampler::AddScore(int32_t token_id, uint64_t position) {
  SampleRow* row = AddRow(position);
  row->given_id = token_id;
  row->num_top_logprobs = 0;
  wanted_.push_back({position, 0, /*is_score=*/true});
}

void TokenSampler::AddSample(const SampleRequest& request) {
  if (num_edits_ + kMaxRowEdits > max_edits_) Flush();
  const SamplingParams& params = request.params;
  SampleRow* row = AddRow(request.position);
  row->seed = params.seed;
  row->temperature = params.temperature;
  row->top_k = params.top_k;
  row->top_p = params.top_p;
  row->min_p = params.min_p;
  row->repetition_penalty = params.repetition_penalty;
  row->presence_penalty = params.presence_penalty;
  row->frequency_penalty = params.frequency_penalty;
  row->num_top_logprobs = request.num_top_logprobs;
  max_top_ = std::max(max_top_, request.num_top_logprobs);
  AddEdits(request, row);
  wanted_.push_back({request.position, request.num_top_logprobs, /*is_score=*/false});
}

LogitEdit& TokenSampler::EditOf(int32_t token_id) {
  int32_t& index = edit_index_[token_id];
  if (index == 0) {
    edits_[num_edits_++] = {.token_id = token_id, .bias = 0.0f, .num_outputs = 0, .flags = 0};
    index = static_cast<int32_t>(num_edits_);
  }
  return edits_[index - 1];
}

void TokenSampler::AddEdits(const SampleRequest& request, SampleRow* row) {
  assert(request.recent.size() <= static_cast<size_t>(kRecentTokenWindow) &&
         request.params.logit_bias.size() <= static_cast<size_t>(kMaxLogitBias));
  if (request.banned_ids.size() > static_cast<size_t>(kMaxBannedIds)) {
    std::fprintf(stderr, "TokenSampler: %zu banned ids\n", request.banned_ids.size());
    std::abort();
  }
  const int64_t begin = num_edits_;
  const auto is_usable = [this](int32_t id) { return id >= 0 && id < num_ids_; };
  for (const auto& [id, bias] : request.params.logit_bias) EditOf(id).bias = bias;
  if (IsPenalised(request.params)) {
    for (const TranscriptToken& token : request.recent) {
      if (!is_usable(token.id)) continue;
      LogitEdit& edit = EditOf(token.id);
      edit.flags |= LogitEdit::kRecent;
      edit.num_outputs += token.is_output ? 1 : 0;
    }
  }
  for (const int32_t id : request.banned_ids) {
    if (is_usable(id)) EditOf(id).flags |= LogitEdit::kBanned;
  }
  for (int64_t i = begin; i < num_edits_; ++i) edit_index_[edits_[i].token_id] = 0;
  row->edits_begin = static_cast<int32_t>(begin);
  row->num_edits = static_cast<int32_t>(num_edits_ - begin);
}

void TokenSampler::Run() { Flush(); }

void TokenSampler::Flush() {
  const int64_t num_rows = num_rows_ - first_row_;
  if (num_rows == 0) return;
  const auto rows = static_cast<size_t>(num_rows);
  backend_->CopyToDeviceAsync(OnDevice<SampleRow>(layout_.rows), rows_, rows * sizeof(SampleRow));
  if (num_edits_ > 0) {
    backend_->CopyToDeviceAsync(OnDevice<LogitEdit>(layout_.edits), edits_,
                                static_cast<size_t>(num_edits_) * sizeof(LogitEdit));
  }
  kernels::SampleTokensParams params{};
  params.logits = logits_;
  params.logits_stride = logits_stride_;
  params.num_ids = num_ids_;
  params.rows = OnDevice<const SampleRow>(layout_.rows);
  params.num_rows = num_rows;
  params.edits = OnDevice<const LogitEdit>(layout_.edits);
  params.unedited = OnDevice<float>(layout_.unedited);
  params.tokens = OnDevice<SampledToken>(layout_.tokens);
  params.top = OnDevice<RankedToken>(layout_.top);
  backend_->SampleTokens(params);
  backend_->CopyToHost(tokens_.data() + first_row_, params.tokens, rows * sizeof(SampledToken));
  if (max_top_ > 0) {
    backend_->CopyToHost(top_.data() + first_row_ * kernels::kMaxTopLogprobs, params.top,
                         rows * kernels::kMaxTopLogprobs * sizeof(RankedToken));
  }
  backend_->Synchronize();
  first_row_ = num_rows_;
  num_edits_ = max_top_ = 0;
}

absl::StatusOr<int32_t> TokenSampler::Token(int64_t row) const {
  assert(row >= 0 && row < first_row_);
  const SampledToken& token = tokens_[row];
  const uint64_t position = wanted_[row].position;
  switch (token.status) {
    case SampleStatus::kOk:
      return token.token_id;
    case SampleStatus::kBadLogit:
      return absl::InternalError(absl::StrCat("the logit of token id ", token.token_id, " is ",
                                              token.bad_logit, " at position ", position,
                                              ", must be finite"));
    case SampleStatus::kNothingLeft:
      break;
  }
  if (wanted_[row].is_score) {
    return absl::InternalError(
        absl::StrCat("all ", num_ids_, " logits are -infinity at position ", position));
  }
  return absl::InternalError(absl::StrCat("no token can be sampled at position ", position,
                                          ": all ", num_ids_, " logits are -infinity or banned"));
}

std::vector<TokenLogprob> TokenSampler::TopLogprobs(int64_t row) const {
  const int64_t count = std::min<int64_t>(wanted_[row].num_top_logprobs, num_ids_);
  std::vector<TokenLogprob> top;
  for (int64_t i = 0; i < count; ++i) {
    const RankedToken& entry = top_[row * kernels::kMaxTopLogprobs + i];
    top.push_back({entry.token_id, entry.logprob});
  }
  return top;
}

}  // namespace vivarium::engine
