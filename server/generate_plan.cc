#include "server/generate_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/runtime/state_convert.h"
#include "server/errors.h"
#include "server/prefix_reuse.h"
#include "server/sampling.h"
#include "server/validate.h"
#include "statestore/slot_packing.h"
#include "statestore/store_rules.h"

namespace vivarium::server {
namespace {

// Session and source state of the request; leaves the plan's explanation.
absl::Status FindSource(const Parts& parts, const GenerateParams& params, GeneratePlan* plan) {
  if (!params.session.empty()) {
    SessionManager& sessions = *parts.sessions;
    auto session = params.save.head == SavePlan::Head::kStands
                       ? sessions.Read(DefaultTenant(), params.session, params.expected_etag)
                       : sessions.Lease(DefaultTenant(), params.session, params.expected_etag);
    if (!session.ok()) return session.status();
    plan->session = *std::move(session);
    plan->session_created = !plan->session->current && params.save.head != SavePlan::Head::kStands;
  }
  if (!params.state_id.empty()) {
    plan->source.state_id = params.state_id;
  } else if (params.fresh) {
    plan->reuse = kReuseFresh;
    plan->reuse_explanation = "nothing reused: a fresh start was asked for";
  } else if (!plan->session) {
    plan->reuse = kReuseNoSource;
    plan->reuse_explanation = "nothing reused: neither a state nor a session was named";
  } else if (plan->session->current) {
    plan->source.state_id = plan->session->current->head;
  } else {
    plan->reuse = kReuseNewSession;
    plan->reuse_explanation =
        absl::StrCat("nothing reused: session ", params.session, " did not exist");
  }
  if (plan->source.state_id.empty()) return absl::OkStatus();
  auto source = LoadSource(parts, plan->source.state_id);
  if (!source.ok()) return source.status();
  plan->source = std::move(source->lineage);
  plan->source_state_id = plan->source.state_id;
  plan->tier = source->tier;
  plan->request.source = std::move(source->snapshot);
  plan->request.hot = std::move(source->hot);
  // The next call on this session goes on from the state that this one makes.
  const bool is_superseded = params.state_id.empty() && params.save.head != SavePlan::Head::kStands;
  plan->request.keeps_hot = !is_superseded;
  plan->reuse = kReuseRestored;
  plan->reuse_explanation =
      absl::StrCat("restored ",
                   params.state_id.empty() ? absl::StrCat("the head of session ", params.session)
                                           : absl::StrCat("state ", plan->source.state_id),
                   ": ", plan->request.source->position, " tokens are not computed again",
                   ExplainTier(plan->tier));
  if (const auto& layout = plan->request.source->layout; layout != parts.model.layout) {
    absl::StrAppend(&plan->reuse_explanation, "; its ", std::string(engine::StateDTypeName(layout)),
                    " state goes on as ", std::string(engine::StateDTypeName(parts.model.layout)));
  }
  const statestore::StorageLoss& loss = plan->source.loss;
  plan->numerics_changed = loss.is_lossy() || plan->request.source->identity.numerics_id !=
                                                  parts.model.identity.numerics_id;
  if (loss.is_lossy()) {
    absl::StrAppend(&plan->reuse_explanation,
                    "; its SSM parts, or those of states that it was computed from, were stored as "
                    "bf16, off by up to ",
                    loss.max_absolute_error, " (relatively ", loss.max_relative_error, ")");
  }
  return absl::OkStatus();
}

// Whether the request saves a state at `position`, the prompt's end, itself.
bool SavesPromptEnd(const GenerateParams& params) {
  return params.save.at_prompt_end || (params.max_tokens == 0 && params.save.at_end);
}

// For a prompt from nothing: takes a stored prefix of it as the source, and plans where the next
// one is stored.
void ReusePrefix(PrefixReuse& prefixes, const GenerateParams& params, GeneratePlan* plan) {
  std::vector<int32_t>& prompt = plan->request.prompt;
  const uint64_t prompt_end = prompt.empty() ? 0 : prompt.size() - 1;
  PrefixPlan found = prefixes.Plan(DefaultTenant(), prompt, params.prefix_reuse);
  if (found.branch_position && !(*found.branch_position == prompt_end && SavesPromptEnd(params))) {
    plan->branch_tokens.assign(prompt.begin(),
                               prompt.begin() + static_cast<ptrdiff_t>(*found.branch_position) + 1);
  }
  if (found.source.snapshot == nullptr) {
    absl::StrAppend(&plan->reuse_explanation, "; ", found.explanation);
    return;
  }
  plan->reuse = kReusePrefix;
  plan->reuse_explanation = std::move(found.explanation);
  plan->source_state_id = found.source.lineage.state_id;
  plan->tier = found.source.tier;
  const auto num_reused = static_cast<ptrdiff_t>(found.source.snapshot->position) + 1;
  for (ptrdiff_t i = 0; i < num_reused; ++i) {
    plan->reused_tokens.push_back({prompt[static_cast<size_t>(i)], /*is_output=*/false});
  }
  prompt.erase(prompt.begin(), prompt.begin() + num_reused);
  plan->request.source = std::move(found.source.snapshot);
  plan->request.hot = std::move(found.source.hot);  // and stays there: others will want it too
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> EncodeInput(const Parts& parts, const Input& input,
                                                 const engine::StateSnapshot* source) {
  if (input.kind == Input::Kind::kTokens) return input.token_ids;
  if (input.empty()) return std::vector<int32_t>();
  if (parts.tokenizer == nullptr) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "model ", parts.model.name, " has no tokenizer.json: only token_ids can be its input")),
        "NO_TOKENIZER");
  }
  absl::StatusOr<std::vector<int32_t>> ids;
  if (input.kind == Input::Kind::kText) {
    ids = parts.tokenizer->Encode(
        input.text, {.parse_special = input.parse_special,
                     .add_bos = source == nullptr && parts.tokenizer->add_bos_token()});
  } else if (!parts.chat_format) {
    return WithReason(absl::FailedPreconditionError(parts.no_chat_reason), "NO_CHAT_FORMAT");
  } else {
    engine::RenderOptions options;
    options.continues = source != nullptr;
    if (source != nullptr) options.pending_token = source->pending_token;
    ids = parts.chat_format->Render(*parts.tokenizer, input.messages, options);
  }
  if (!ids.ok()) return ids.status();
  const auto max_tokens = static_cast<size_t>(parts.options.max_prompt_tokens);
  if (ids->size() > max_tokens) {
    return InvalidField("input", absl::StrCat(ids->size(), " tokens"),
                        absl::StrCat("at most ", max_tokens));
  }
  absl::Status status = CheckTokenIds("input", *ids, parts.model.config.vocab_size);
  if (!status.ok()) return status;
  return ids;
}

RequestLimits LimitsOf(const Parts& parts) {
  RequestLimits limits;
  limits.vocab_size = parts.model.config.vocab_size;
  limits.default_max_tokens = parts.options.default_max_tokens;
  limits.max_tokens = parts.options.max_tokens;
  limits.max_prompt_tokens = parts.options.max_prompt_tokens;
  if (parts.options.default_ttl_seconds > 0) {
    limits.default_ttl = absl::Seconds(parts.options.default_ttl_seconds);
  }
  limits.default_save_every_tokens = static_cast<uint32_t>(parts.options.snapshot_every);
  limits.default_keep_snapshots = static_cast<uint32_t>(parts.options.snapshot_keep);
  limits.default_codec =
      statestore::StateCodecFor(parts.options.codec).value_or(limits.default_codec);
  return limits;
}

absl::StatusOr<GeneratePlan> PlanGenerate(const Parts& parts, const GenerateParams& params) {
  GeneratePlan plan;
  absl::Status status = FindSource(parts, params, &plan);
  if (!status.ok()) return status;
  engine::EngineRequest& request = plan.request;
  if (params.input.empty() && request.source == nullptr) {
    return InvalidField("input", "empty",
                        absl::StrCat("an input: session ", params.session, " does not exist yet"));
  }
  auto prompt = EncodeInput(parts, params.input, request.source.get());
  if (!prompt.ok()) return prompt.status();
  request.prompt = *std::move(prompt);
  if (request.source == nullptr && parts.prefixes != nullptr) {
    ReusePrefix(*parts.prefixes, params, &plan);
  }
  request.sampling =
      ResolveSampling(params.sampling, parts.model.generation_defaults,
                      params.input.empty() ? &request.source->sampling : nullptr, FreshSeed());
  status = engine::ValidateSamplingParams(request.sampling, parts.model.config.vocab_size);
  if (!status.ok()) return status;
  request.stop = params.stop;
  request.max_tokens = params.max_tokens;
  request.min_tokens = params.min_tokens;
  request.num_top_logprobs = params.num_top_logprobs;
  // A drain saves the point reached of every stream that saves anything, so the engine hands it
  // out for all of them.
  request.save.at_end = params.save.saves_anything();
  request.save.at_prompt_end = params.save.at_prompt_end;
  request.save.every_tokens = params.save.every_tokens;
  if (!plan.branch_tokens.empty()) {
    request.save.prompt_positions = {plan.branch_tokens.size() - 1};
  }
  request.priority = params.priority;
  request.deadline = params.deadline;
  return plan;
}

}  // namespace vivarium::server
