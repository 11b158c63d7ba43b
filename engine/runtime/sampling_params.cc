#include "engine/runtime/sampling_params.h"

#include "absl/strings/str_cat.h"

namespace vivarium::engine {
namespace {

absl::Status OutOfRange(const char* field, double value, const char* range) {
  return absl::InvalidArgumentError(
      absl::StrCat("sampling.", field, " is ", value, ", must be in ", range));
}

absl::Status ValidateLogitBias(const SamplingParams& params, int64_t vocab_size) {
  const auto& bias = params.logit_bias;
  if (bias.size() > static_cast<size_t>(kMaxLogitBias)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.logit_bias has ", bias.size(), " entries, at most ", kMaxLogitBias));
  }
  for (size_t i = 0; i < bias.size(); ++i) {
    const auto& [id, value] = bias[i];
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias has token id ", id,
                                                     ", must be in [0, ", vocab_size, ")"));
    }
    if (i > 0 && id <= bias[i - 1].first) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias must be sorted by distinct ids, found ", id, " after ",
                       bias[i - 1].first));
    }
    if (!(value >= -100.0f && value <= 100.0f)) {
      return OutOfRange(absl::StrCat("logit_bias[", id, "]").c_str(), value, "[-100, 100]");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size) {
  // Written so that NaN fails every comparison.
  if (!(params.temperature >= 0.0f && params.temperature <= kMaxTemperature)) {
    return OutOfRange("temperature", params.temperature, "[0, 100]");
  }
  if (params.top_k < 0) return OutOfRange("top_k", params.top_k, "[0, 2147483647]");
  if (!(params.top_p > 0.0f && params.top_p <= 1.0f)) {
    return OutOfRange("top_p", params.top_p, "(0, 1]");
  }
  if (!(params.min_p >= 0.0f && params.min_p <= 1.0f)) {
    return OutOfRange("min_p", params.min_p, "[0, 1]");
  }
  if (!(params.repetition_penalty > 0.0f && params.repetition_penalty <= 100.0f)) {
    return OutOfRange("repetition_penalty", params.repetition_penalty, "(0, 100]");
  }
  if (!(params.presence_penalty >= -100.0f && params.presence_penalty <= 100.0f)) {
    return OutOfRange("presence_penalty", params.presence_penalty, "[-100, 100]");
  }
  if (!(params.frequency_penalty >= -100.0f && params.frequency_penalty <= 100.0f)) {
    return OutOfRange("frequency_penalty", params.frequency_penalty, "[-100, 100]");
  }
  return ValidateLogitBias(params, vocab_size);
}

}  // namespace vivarium::engine
