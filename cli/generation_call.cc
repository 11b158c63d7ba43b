#include "cli/generation_call.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "cli/proto_json.h"
#include "google/protobuf/util/time_util.h"

namespace vivarium::cli {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(google::protobuf::util::TimeUtil::DurationToNanoseconds(duration)) /
         1e9;
}

void Take(const v1::GenerateResponse& response,
          const std::function<void(std::string_view)>& on_text, GenerationResult* result) {
  switch (response.event_case()) {
    case v1::GenerateResponse::kStarted:
      result->started = response.started();
      break;
    case v1::GenerateResponse::kDelta: {
      const v1::Delta& delta = response.delta();
      result->text += delta.text();
      for (int32_t id : delta.token_ids()) result->token_ids.push_back(id);
      for (const auto& logprobs : delta.logprobs()) result->logprobs.push_back(logprobs);
      if (!delta.text().empty()) on_text(delta.text());
      break;
    }
    case v1::GenerateResponse::kSaved:
      result->saved.push_back(response.saved().state());
      break;
    case v1::GenerateResponse::kFinished:
      result->finished = response.finished();
      result->is_finished = true;
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;  // an event of a newer server
  }
}

Json LogprobsJson(const GenerationResult& result) {
  Json array = Json::array();
  for (size_t i = 0; i < result.logprobs.size(); ++i) {
    Json entry = Json::object();
    if (i < result.token_ids.size()) entry["token_id"] = result.token_ids[i];
    entry["logprob"] = result.logprobs[i].logprob();
    entry["top"] = ToJsonArray(result.logprobs[i].top());
    array.push_back(std::move(entry));
  }
  return array;
}

}  // namespace

std::string TierName(v1::StateTier tier) {
  const std::string name = v1::StateTier_Name(tier);  // "" of a newer server's
  return absl::AsciiStrToLower(absl::StripPrefix(name, "TIER_"));
}

std::string GenerationResult::StateId() const {
  if (finished.has_state()) return finished.state().id();
  return saved.empty() ? "" : saved.back().id();
}

grpc::Status RunGeneration(Client& client, const v1::GenerateRequest& request,
                           const std::function<void(std::string_view)>& on_text,
                           GenerationResult* result) {
  const auto call = client.NewCall();
  const auto reader = client.generation().Generate(call->context(), request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) Take(response, on_text, result);
  grpc::Status status = reader->Finish();
  if (status.ok() && !result->is_finished) {
    return {grpc::StatusCode::UNAVAILABLE, "the stream ended before it was finished"};
  }
  return status;
}

Json GenerationJson(const GenerationResult& result) {
  const v1::Usage& usage = result.finished.usage();
  Json object = {
      {"text", result.text},
      {"token_ids", result.token_ids},
      {"finish_reason", absl::AsciiStrToLower(v1::FinishReason_Name(result.finished.reason()))},
      {"usage",
       {{"restored_tokens", usage.restored_tokens()},
        {"prefill_tokens", usage.prefill_tokens()},
        {"output_tokens", usage.output_tokens()},
        {"skipped_snapshots", usage.skipped_snapshots()},
        {"state_tier", TierName(usage.state_tier())},
        {"prefill_seconds", Seconds(usage.prefill_time())},
        {"decode_seconds", Seconds(usage.decode_time())}}},
      {"state_id", result.StateId()},
  };
  if (result.finished.has_state()) object["state"] = ToJson(result.finished.state());
  if (!result.saved.empty()) {
    Json ids = Json::array();
    for (const v1::State& state : result.saved) ids.push_back(state.id());
    object["saved_state_ids"] = std::move(ids);
  }
  object["stop"] = ToJson(result.finished.stop());
  object["session_etag"] = result.finished.session_etag();
  object["started"] = ToJson(result.started);
  if (!result.logprobs.empty()) object["logprobs"] = LogprobsJson(result);
  return object;
}

std::string GenerationSummary(const GenerationResult& result) {
  const v1::Usage& usage = result.finished.usage();
  const std::string where = usage.state_tier() == v1::TIER_NONE
                                ? ""
                                : absl::StrCat(" (", TierName(usage.state_tier()), ")");
  std::string summary = absl::StrCat("restored ", FormatCount(usage.restored_tokens()), " tokens",
                                     where, " · read ", FormatCount(usage.prefill_tokens()),
                                     " · wrote ", FormatCount(usage.output_tokens()));
  const double seconds = Seconds(usage.decode_time());
  if (usage.output_tokens() > 1 && seconds > 0) {
    absl::StrAppendFormat(&summary, " at %.0f tok/s",
                          static_cast<double>(usage.output_tokens() - 1) / seconds);
  }
  if (result.finished.reason() == v1::LENGTH) summary += " · stopped at --max-tokens";
  if (result.finished.reason() == v1::DRAINED) summary += " · the server is shutting down";
  if (result.started.numerics_changed()) summary += " · numerics changed";
  if (result.started.replayed()) summary += " · replayed";
  if (const std::string id = result.StateId(); !id.empty()) summary += " · " + id;
  return summary;
}

}  // namespace vivarium::cli
