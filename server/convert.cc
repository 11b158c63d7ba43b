#include "server/convert.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/text_stream.h"
#include "engine/text/utf8.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/content_hash.h"
#include "server/errors.h"
#include "server/validate.h"
#include "statestore/slot_packing.h"
#include "statestore/snapshot_thinning.h"

namespace vivarium::server {
namespace {

absl::Status ParseMessages(const v1::ChatMessages& chat, Input* input) {
  absl::Status status = CheckCount("chat.messages", static_cast<size_t>(chat.messages_size()),
                                   engine::kMaxChatMessages);
  if (!status.ok()) return status;
  for (const v1::ChatMessage& message : chat.messages()) {
    if (message.role().empty()) {
      return InvalidField("chat.messages.role", "\"\"", "a role of the model's chat format");
    }
    input->messages.push_back({message.role(), message.content()});
  }
  return absl::OkStatus();
}

// Of any request with the input fields text, token_ids and parse_special.
template <typename Request>
absl::Status ParseTextOrTokens(const Request& request, const RequestLimits& limits, Input* input) {
  input->parse_special = request.parse_special();
  if (request.input_case() == Request::kText) {
    input->kind = Input::Kind::kText;
    if (request.text().size() > kMaxTextBytes) {
      return InvalidField("text", absl::StrCat(request.text().size(), " bytes"),
                          absl::StrCat("at most ", kMaxTextBytes));
    }
    input->text = request.text();
    return CheckUtf8("text", input->text);
  }
  if (request.input_case() == Request::kTokenIds) {
    input->kind = Input::Kind::kTokens;
    const auto& ids = request.token_ids().ids();
    input->token_ids.assign(ids.begin(), ids.end());
    absl::Status status = CheckCount("token_ids", input->token_ids.size(),
                                     static_cast<size_t>(limits.max_prompt_tokens));
    if (!status.ok()) return status;
    return CheckTokenIds("token_ids", input->token_ids, limits.vocab_size);
  }
  return absl::OkStatus();
}

template <typename Request>
absl::Status ParseInput(const Request& request, const RequestLimits& limits, Input* input) {
  absl::Status status = ParseTextOrTokens(request, limits, input);
  if (status.ok() && request.input_case() == Request::kChat) {
    input->kind = Input::Kind::kChat;
    status = ParseMessages(request.chat(), input);
  }
  if (status.ok() && request.parse_special() && input->kind != Input::Kind::kText) {
    status = InvalidField("parse_special", "true", "false where the input is no text");
  }
  return status;
}

template <typename T>
std::optional<T> Optional(bool has, T value) {
  return has ? std::optional<T>(value) : std::nullopt;
}

// The engine checks the same; here the field has its name on the wire.
absl::Status CheckSampling(const v1::Sampling& in) {
  constexpr double kSmallest = 1e-30;  // for what must be above 0
  absl::Status status;
  const auto check = [&status](bool has, const char* field, double value, double min, double max) {
    if (status.ok() && has) status = CheckRange(field, value, min, max);
  };
  check(in.has_temperature(), "sampling.temperature", in.temperature(), 0, engine::kMaxTemperature);
  check(in.has_top_k(), "sampling.top_k", in.top_k(), 0, INT32_MAX);
  check(in.has_top_p(), "sampling.top_p", in.top_p(), kSmallest, 1);
  check(in.has_min_p(), "sampling.min_p", in.min_p(), 0, 1);
  check(in.has_repetition_penalty(), "sampling.repetition_penalty", in.repetition_penalty(),
        kSmallest, 100);
  check(in.has_presence_penalty(), "sampling.presence_penalty", in.presence_penalty(), -100, 100);
  check(in.has_frequency_penalty(), "sampling.frequency_penalty", in.frequency_penalty(), -100,
        100);
  check(in.has_logprobs(), "sampling.logprobs", in.logprobs(), 0, engine::kMaxTopLogprobs);
  if (status.ok()) {
    status = CheckCount("sampling.logit_bias", in.logit_bias().size(), engine::kMaxLogitBias);
  }
  for (const auto& [id, bias] : in.logit_bias()) {
    check(true, "sampling.logit_bias", bias, -100, 100);
  }
  return status;
}

absl::Status ParseSampling(const v1::Sampling& in, GenerateParams* out) {
  SamplingOverrides& s = out->sampling;
  s.temperature = Optional(in.has_temperature(), in.temperature());
  s.top_k = Optional(in.has_top_k(), in.top_k());
  s.top_p = Optional(in.has_top_p(), in.top_p());
  s.min_p = Optional(in.has_min_p(), in.min_p());
  s.repetition_penalty = Optional(in.has_repetition_penalty(), in.repetition_penalty());
  s.presence_penalty = Optional(in.has_presence_penalty(), in.presence_penalty());
  s.frequency_penalty = Optional(in.has_frequency_penalty(), in.frequency_penalty());
  s.seed = Optional(in.has_seed(), in.seed());
  s.logit_bias.assign(in.logit_bias().begin(), in.logit_bias().end());
  std::sort(s.logit_bias.begin(), s.logit_bias.end());
  out->num_top_logprobs = in.has_logprobs() ? in.logprobs() : -1;
  return CheckSampling(in);
}

absl::Status ParseStops(const v1::Stops& in, const RequestLimits& limits,
                        engine::StopCriteria* out) {
  out->ignore_eos = in.ignore_eos();
  out->stop_strings.assign(in.strings().begin(), in.strings().end());
  out->stop_token_ids.assign(in.token_ids().begin(), in.token_ids().end());
  absl::Status status =
      CheckCount("stops.strings", out->stop_strings.size(), engine::kMaxStopStrings);
  for (const std::string& text : out->stop_strings) {
    if (status.ok()) status = CheckUtf8("stops.strings", text);
    if (status.ok() && (text.empty() || text.size() > engine::kMaxStopStringBytes)) {
      status = InvalidField("stops.strings", absl::StrCat(text.size(), " bytes"),
                            absl::StrCat("1 .. ", engine::kMaxStopStringBytes, " bytes each"));
    }
  }
  if (status.ok()) {
    status = CheckCount("stops.token_ids", out->stop_token_ids.size(), engine::kMaxStopTokenIds);
  }
  if (status.ok()) {
    status = CheckTokenIds("stops.token_ids", out->stop_token_ids, limits.vocab_size);
  }
  return status;
}

// The rules are in generation.proto, at SavePolicy.
absl::Status ParseSave(const v1::GenerateRequest& request, const RequestLimits& limits,
                       SavePlan* plan) {
  const v1::SavePolicy& save = request.save();
  plan->at_end = save.at_end();
  plan->at_prompt_end = save.at_prompt_end();
  plan->every_tokens = save.every_tokens();
  if (save.every_tokens() != 0 && save.every_tokens() < kMinSaveEveryTokens) {
    return InvalidField("save.every_tokens", absl::StrCat(save.every_tokens()),
                        absl::StrCat("0, or at least ", kMinSaveEveryTokens));
  }
  const std::optional<statestore::StateCodec> codec =
      save.codec().empty() ? limits.default_codec : statestore::StateCodecFor(save.codec());
  if (!codec) return InvalidField("save.codec", save.codec(), "raw, zstd or bf16");
  plan->codec = *codec;
  plan->keep_snapshots =
      save.has_keep_snapshots() ? save.keep_snapshots() : limits.default_keep_snapshots;
  if (plan->keep_snapshots < 1 || plan->keep_snapshots > statestore::kMaxKeptNewest) {
    return InvalidField("save.keep_snapshots", absl::StrCat(plan->keep_snapshots),
                        absl::StrCat("1 to ", statestore::kMaxKeptNewest));
  }
  if (!request.session().empty()) {
    if (!request.has_save()) plan->at_end = true;
    if (plan->at_prompt_end && !plan->at_end && plan->every_tokens == 0) {
      plan->head = SavePlan::Head::kToPromptEnd;
    } else if (plan->saves_anything()) {
      plan->at_end = true;
      plan->head = SavePlan::Head::kToEnd;
    }
  }
  if (plan->at_end && !save.has_every_tokens()) {
    plan->every_tokens = limits.default_save_every_tokens;
  }
  return absl::OkStatus();
}

absl::Status ParseLengths(const v1::GenerateRequest& request, const RequestLimits& limits,
                          GenerateParams* params) {
  const int32_t max_tokens =
      request.has_max_tokens() ? request.max_tokens() : limits.default_max_tokens;
  absl::Status status = CheckIntRange("max_tokens", max_tokens, 0, limits.max_tokens);
  if (status.ok()) {
    status = CheckIntRange("min_tokens", request.min_tokens(), 0, max_tokens);
  }
  if (status.ok()) {
    status = CheckIntRange("priority", request.priority(), -kMaxPriority, kMaxPriority);
  }
  params->max_tokens = static_cast<uint32_t>(max_tokens);
  params->min_tokens = static_cast<uint32_t>(request.min_tokens());
  params->priority = request.priority();
  return status;
}

// What is saved, and under which names.
absl::Status ParseKeeping(const v1::GenerateRequest& request, const RequestLimits& limits,
                          GenerateParams* params) {
  absl::Status status = ParseSave(request, limits, &params->save);
  if (!status.ok()) return status;
  params->ttl = limits.default_ttl;
  if (request.has_ttl()) {
    auto ttl = ParseDuration("ttl", request.ttl(), absl::Seconds(1), kMaxTtl);
    if (!ttl.ok()) return ttl.status();
    params->ttl = *ttl;
  }
  params->labels = ParseLabels(request.labels());
  status = CheckLabels(params->labels);
  if (!status.ok()) return status;
  params->request_id = request.request_id();
  status = CheckRequestId(params->request_id);
  if (status.ok() && !params->request_id.empty() && !params->save.saves_anything()) {
    status = InvalidField("request_id", params->request_id,
                          "none where nothing is saved: there is nothing to do twice");
  }
  return status;
}

absl::Status ParseSource(const v1::GenerateRequest& request, GenerateParams* params) {
  absl::Status status;
  if (request.source_case() == v1::GenerateRequest::kStateId) {
    params->state_id = request.state_id();
    status = CheckStateId("state_id", params->state_id);
  }
  params->fresh = request.fresh();
  params->prefix_reuse = Optional(request.has_prefix_reuse(), request.prefix_reuse());
  params->session = request.session();
  params->expected_etag = request.expected_etag();
  if (status.ok() && !params->session.empty()) status = CheckName("session", params->session);
  if (status.ok() && params->session.empty() && !params->expected_etag.empty()) {
    status = InvalidField("expected_etag", params->expected_etag, "none without a session");
  }
  if (status.ok() && params->fresh && params->input.empty()) {
    status = InvalidField("input", "empty", "something to go on from where fresh is true");
  }
  if (status.ok() && params->input.empty() && params->state_id.empty() && params->session.empty()) {
    status = InvalidField("input", "empty", "an input, a state_id or a session to go on from");
  }
  return status;
}

// Maps are sorted, so that equal requests have equal bytes.
std::string HashRequest(const v1::GenerateRequest& request) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    request.SerializeToCodedStream(&coded);
  }
  return ContentHash(bytes);
}

}  // namespace

absl::StatusOr<GenerateParams> ParseGenerate(const v1::GenerateRequest& request,
                                             const RequestLimits& limits) {
  GenerateParams params;
  absl::Status status = ParseInput(request, limits, &params.input);
  if (status.ok()) status = ParseSource(request, &params);
  if (status.ok()) status = ParseSampling(request.sampling(), &params);
  if (status.ok()) status = ParseStops(request.stops(), limits, &params.stop);
  if (status.ok()) status = ParseLengths(request, limits, &params);
  if (status.ok()) status = ParseKeeping(request, limits, &params);
  if (!status.ok()) return status;
  if (!params.request_id.empty()) params.request_hash = HashRequest(request);
  return params;
}

absl::StatusOr<ScoreParams> ParseScore(const v1::ScoreRequest& request,
                                       const RequestLimits& limits) {
  ScoreParams params;
  params.state_ids.assign(request.state_ids().begin(), request.state_ids().end());
  absl::Status status = CheckCount("state_ids", params.state_ids.size(), kMaxScoreStates);
  for (const std::string& id : params.state_ids) {
    if (status.ok()) status = CheckStateId("state_ids", id);
  }
  if (status.ok()) status = ParseTextOrTokens(request, limits, &params.input);
  if (status.ok() && params.input.empty()) {
    status = InvalidField("input", "empty", "the tokens to score");
  }
  if (!status.ok()) return status;
  return params;
}

absl::StatusOr<Input> ParseTokenize(const v1::TokenizeRequest& request,
                                    const RequestLimits& limits) {
  Input input;
  absl::Status status = ParseInput(request, limits, &input);
  if (status.ok() && input.kind == Input::Kind::kNone) {
    status = InvalidField("input", "missing", "text, token_ids or chat");
  }
  if (!status.ok()) return status;
  return input;
}

void ToProto(const statestore::StateManifest& manifest, v1::State* state) {
  state->set_id(manifest.id);
  state->set_parent_id(manifest.parent_id);
  state->set_model_fingerprint(manifest.identity.fingerprint);
  state->set_tokenizer_hash(manifest.identity.tokenizer_hash);
  state->set_numerics_id(manifest.identity.numerics_id);
  state->set_position(manifest.position);
  state->set_pending_token(manifest.pending_token);
  state->set_session(manifest.session);
  state->mutable_labels()->clear();
  for (const auto& [key, value] : manifest.labels) (*state->mutable_labels())[key] = value;
  state->set_pinned(manifest.pinned);
  *state->mutable_create_time() = ToProto(manifest.created);
  if (manifest.expires != absl::InfiniteFuture()) {
    *state->mutable_expire_time() = ToProto(manifest.expires);
  }
  state->set_size_bytes(manifest.stored_bytes);
  state->set_dropped(manifest.bytes_dropped);
  state->set_codec(std::string(statestore::StateCodecName(manifest.codec)));
  state->set_max_absolute_error(manifest.loss.max_absolute_error);
  state->set_max_relative_error(manifest.loss.max_relative_error);
  state->set_inherited_absolute_error(manifest.inherited_loss.max_absolute_error);
  state->set_inherited_relative_error(manifest.inherited_loss.max_relative_error);
  state->set_snapshot(manifest.is_snapshot);
}

void ToProto(const statestore::Session& session, const statestore::StateManifest& head,
             v1::Session* out) {
  out->set_name(session.name);
  ToProto(head, out->mutable_head());
  out->set_etag(session.etag);
  *out->mutable_create_time() = ToProto(session.created);
  *out->mutable_update_time() = ToProto(session.updated);
}

v1::StateTier ToProto(StateTier tier) {
  return static_cast<v1::StateTier>(tier);  // the same numbers
}
static_assert(static_cast<int>(StateTier::kDevice) == v1::TIER_DEVICE &&
              static_cast<int>(StateTier::kHost) == v1::TIER_HOST &&
              static_cast<int>(StateTier::kDisk) == v1::TIER_DISK);

void ToProto(const engine::SamplingParams& sampling, int32_t num_top_logprobs, v1::Sampling* out) {
  out->set_temperature(sampling.temperature);
  out->set_top_k(sampling.top_k);
  out->set_top_p(sampling.top_p);
  out->set_min_p(sampling.min_p);
  out->set_repetition_penalty(sampling.repetition_penalty);
  out->set_presence_penalty(sampling.presence_penalty);
  out->set_frequency_penalty(sampling.frequency_penalty);
  out->set_seed(sampling.seed);
  for (const auto& [id, bias] : sampling.logit_bias) (*out->mutable_logit_bias())[id] = bias;
  if (num_top_logprobs >= 0) out->set_logprobs(num_top_logprobs);
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration out;
  absl::Duration rest;
  out.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &rest));
  out.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  return out;
}

google::protobuf::Timestamp ToProto(absl::Time time) {
  const google::protobuf::Duration since_epoch = ToProto(time - absl::UnixEpoch());
  google::protobuf::Timestamp out;
  out.set_seconds(since_epoch.seconds());
  out.set_nanos(since_epoch.nanos());
  return out;
}

absl::StatusOr<absl::Time> ParseTime(std::string_view field,
                                     const google::protobuf::Timestamp& time) {
  constexpr int64_t kMinSeconds = -62135596800;  // year 1
  constexpr int64_t kMaxSeconds = 253402300799;  // year 9999
  if (time.seconds() < kMinSeconds || time.seconds() > kMaxSeconds || time.nanos() < 0 ||
      time.nanos() > 999'999'999) {
    return InvalidField(field, absl::StrCat(time.seconds(), " s, ", time.nanos(), " ns"),
                        "a timestamp in the years 1 .. 9999");
  }
  return absl::UnixEpoch() + absl::Seconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view field,
                                             const google::protobuf::Duration& duration,
                                             absl::Duration min, absl::Duration max) {
  const absl::Duration value =
      absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
  if (std::abs(int64_t{duration.nanos()}) > 999'999'999 || value < min || value > max) {
    return InvalidField(field, absl::StrCat(duration.seconds(), " s, ", duration.nanos(), " ns"),
                        absl::StrCat(absl::FormatDuration(min), " .. ", absl::FormatDuration(max)));
  }
  return value;
}

statestore::Labels ParseLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  return {labels.begin(), labels.end()};
}

void TranscriptWriter::Append(const statestore::StateManifest& manifest, v1::State* state) {
  const std::vector<engine::TranscriptToken>& tokens = manifest.transcript;
  for (size_t begin = 0; begin < tokens.size();) {
    const bool is_output = tokens[begin].is_output;
    v1::TranscriptEntry* entry = state->add_transcript();
    entry->set_is_output(is_output);
    std::string bytes;
    if (tail_is_output_ == is_output) bytes = std::move(tail_);
    tail_.clear();
    size_t end = begin;
    for (; end < tokens.size() && tokens[end].is_output == is_output; ++end) {
      entry->add_token_ids(tokens[end].id);
      if (tokenizer_ != nullptr) bytes += tokenizer_->TokenBytes(tokens[end].id);
    }
    const size_t num_incomplete = engine::AppendValidUtf8(bytes, entry->mutable_text());
    tail_ = bytes.substr(bytes.size() - num_incomplete);
    tail_is_output_ = is_output;
    begin = end;
  }
}

}  // namespace vivarium::server
