#include "engine/runtime/request_check.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "engine/text/text_stream.h"

namespace vivarium::engine {
namespace {

// A thread longer than this can't be: it keeps sums of positions and lengths far from overflow.
constexpr uint64_t kMaxPosition = uint64_t{1} << 62;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status CheckIds(std::span<const int32_t> ids, const char* field, int64_t num_ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= num_ids) {
      return Invalid(field, "[", i, "] is ", ids[i], ", token ids are in [0, ", num_ids, ")");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBelongs(const StateSnapshot& source, const RequestLimits& limits) {
  if (source.identity.fingerprint != limits.identity.fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("the state belongs to model ", source.identity.fingerprint,
                     ", this engine runs model ", limits.identity.fingerprint));
  }
  if (source.identity.tokenizer_hash != limits.identity.tokenizer_hash) {
    return absl::FailedPreconditionError(
        absl::StrCat("the state belongs to tokenizer '", source.identity.tokenizer_hash,
                     "', this engine has tokenizer '", limits.identity.tokenizer_hash, "'"));
  }
  if (source.layout != limits.layout && !AreConvertible(source.layout, limits.layout)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the state has layout version ", source.layout.version, " with ",
                     source.layout.parts.size(), " parts in ", source.layout.slot_bytes,
                     " bytes, this engine has version ", limits.layout.version, " with ",
                     limits.layout.parts.size(), " parts in ", limits.layout.slot_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status CheckSource(const StateSnapshot& source, bool is_hot, const RequestLimits& limits) {
  if (absl::Status status = CheckBelongs(source, limits); !status.ok()) return status;
  if (is_hot && source.layout != limits.layout) {
    return Invalid("source.layout is another one than the hot state's");
  }
  const uint64_t slot_bytes = is_hot ? 0 : source.layout.slot_bytes;
  if (source.slot.size() != slot_bytes) {
    return Invalid("source.slot has ", source.slot.size(), " bytes, expected ", slot_bytes,
                   is_hot ? ": the hot state has them" : "");
  }
  if (source.position > kMaxPosition) {
    return Invalid("source.position is ", source.position, ", at most ", kMaxPosition);
  }
  const uint64_t num_recent = std::min<uint64_t>(source.position + 1, kRecentTokenWindow);
  if (source.recent_tokens.size() != num_recent) {
    return Invalid("source.recent_tokens has ", source.recent_tokens.size(), " tokens, expected ",
                   num_recent, " at position ", source.position);
  }
  if (source.recent_tokens.back().id != source.pending_token) {
    return Invalid("source.recent_tokens ends with ", source.recent_tokens.back().id,
                   ", expected the pending token ", source.pending_token);
  }
  for (const TranscriptToken& token : source.recent_tokens) {
    const int32_t id = token.id;
    absl::Status status = CheckIds({&id, 1}, "source.recent_tokens", limits.num_ids);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckStop(const StopCriteria& stop, const RequestLimits& limits) {
  if (stop.stop_token_ids.size() > kMaxStopTokenIds) {
    return Invalid("stop.stop_token_ids has ", stop.stop_token_ids.size(), " ids, at most ",
                   kMaxStopTokenIds);
  }
  if (!stop.stop_strings.empty() && !limits.has_tokenizer) {
    return Invalid("stop.stop_strings has ", stop.stop_strings.size(),
                   " strings, but this engine has no tokenizer");
  }
  return CheckIds(stop.stop_token_ids, "stop.stop_token_ids", limits.num_ids);
}

absl::Status CheckPromptPositions(const EngineRequest& request) {
  const std::vector<uint64_t>& positions = request.save.prompt_positions;
  if (positions.size() > kMaxPromptPositions) {
    return Invalid("save.prompt_positions has ", positions.size(), " positions, at most ",
                   kMaxPromptPositions);
  }
  const uint64_t begin = request.source != nullptr ? request.source->position : 0;
  const uint64_t last = begin + request.prompt.size() - (request.source != nullptr ? 0 : 1);
  for (size_t i = 0; i < positions.size(); ++i) {
    const uint64_t after = i > 0 ? positions[i - 1] : begin;
    if (positions[i] <= after || positions[i] > last) {
      return Invalid("save.prompt_positions[", i, "] is ", positions[i], ", must be in (", after,
                     ", ", last, "]");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(const EngineRequest& request, const RequestLimits& limits) {
  const EngineOptions& options = limits.options;
  if (request.source == nullptr && request.prompt.empty()) {
    return Invalid("prompt is empty, and there is no source state to go on from");
  }
  if (request.prompt.size() > options.max_prompt_tokens) {
    return Invalid("prompt has ", request.prompt.size(), " tokens, at most ",
                   options.max_prompt_tokens);
  }
  if (request.max_tokens > options.max_tokens_limit) {
    return Invalid("max_tokens is ", request.max_tokens, ", at most ", options.max_tokens_limit);
  }
  if (request.min_tokens > request.max_tokens) {
    return Invalid("min_tokens is ", request.min_tokens, ", at most max_tokens, ",
                   request.max_tokens);
  }
  if (request.num_top_logprobs < -1 || request.num_top_logprobs > kMaxTopLogprobs) {
    return Invalid("num_top_logprobs is ", request.num_top_logprobs, ", must be in [-1, ",
                   kMaxTopLogprobs, "]");
  }
  if (request.score && request.max_tokens != 0) {
    return Invalid("max_tokens is ", request.max_tokens, ", must be 0 when scoring");
  }
  if (request.score && request.prompt.empty()) return Invalid("prompt is empty, nothing to score");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequest(const EngineRequest& request, const RequestLimits& limits) {
  if (absl::Status status = CheckNumbers(request, limits); !status.ok()) return status;
  if (absl::Status status = ValidateSamplingParams(request.sampling, limits.num_ids);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckStop(request.stop, limits); !status.ok()) return status;
  if (request.source == nullptr && request.hot) {
    return Invalid("source is null, expected what goes with the hot state");
  }
  if (request.source != nullptr) {
    if (absl::Status status = CheckSource(*request.source, static_cast<bool>(request.hot), limits);
        !status.ok())
      return status;
  }
  if (absl::Status status = CheckPromptPositions(request); !status.ok()) return status;
  return CheckIds(request.prompt, "prompt", limits.num_ids);
}

}  // namespace vivarium::engine
