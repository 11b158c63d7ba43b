#include "cli/flags.h"

#include <CLI/Validators.hpp>
#include <charconv>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace vivarium::cli {
namespace {

constexpr char kSamplingGroup[] = "Sampling";
constexpr char kStateGroup[] = "State";
constexpr char kServerGroup[] = "Server";
constexpr uint32_t kMinEveryTokens = 16;
constexpr uint32_t kMaxKeepSnapshots = 64;

// "NAME=VALUE" with something on the left.
std::string CheckAssignment(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) return "'" + text + "' is not NAME=VALUE";
  return "";
}

struct LogitBias {
  int32_t token_id;
  float bias;
};

std::optional<LogitBias> ParseLogitBias(const std::string& text) {
  const size_t equals = text.find('=');
  LogitBias result;
  if (equals == std::string::npos || !absl::SimpleAtoi(text.substr(0, equals), &result.token_id) ||
      !absl::SimpleAtof(text.substr(equals + 1), &result.bias) || !std::isfinite(result.bias)) {
    return std::nullopt;
  }
  return result;
}

std::string CheckLogitBias(const std::string& text) {
  return ParseLogitBias(text) ? "" : "'" + text + "' is not ID=BIAS, such as 17=-2.5";
}

std::string CheckSavePolicy(const std::string& text) {
  v1::SavePolicy ignored;
  return std::string(ParseSavePolicy(text, &ignored).message());
}

}  // namespace

absl::Status ParseSavePolicy(const std::string& text, v1::SavePolicy* policy) {
  policy->Clear();
  const std::vector<std::string> words = absl::StrSplit(text, ',');
  for (const std::string& word : words) {
    uint32_t every = 0;
    uint32_t keep = 0;
    if (word == "none" && words.size() == 1) return absl::OkStatus();
    if (word == "end") {
      policy->set_at_end(true);
    } else if (word == "prompt") {
      policy->set_at_prompt_end(true);
    } else if (word.rfind("every=", 0) == 0 && absl::SimpleAtoi(word.substr(6), &every) &&
               (every == 0 || every >= kMinEveryTokens)) {
      policy->set_every_tokens(every);
    } else if (word.rfind("keep=", 0) == 0 && absl::SimpleAtoi(word.substr(5), &keep) &&
               keep >= 1 && keep <= kMaxKeepSnapshots) {
      policy->set_keep_snapshots(keep);
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", word, "' is none of: none (alone), end, prompt, every=N with N 0 or >= ",
          kMinEveryTokens, ", keep=K with K 1 to ", kMaxKeepSnapshots));
    }
  }
  return absl::OkStatus();
}

void ConnectionFlags::Declare(CLI::App* app) {
  app->add_option("--server", server, "Where the server listens")
      ->type_name("HOST:PORT")
      ->envname("VIVARIUM_SERVER")
      ->capture_default_str()
      ->group(kServerGroup);
  app->add_option("--timeout", timeout_seconds, "Give up after that long; default: never")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 1e6))
      ->group(kServerGroup);
}

void JsonFlag::Declare(CLI::App* app, const std::string& what) {
  app->add_flag("--json", json, "Print " + what + " as JSON");
}

void LabelFlags::Declare(CLI::App* app, const std::string& what) {
  app->add_option("--label", labels, what)
      ->type_name("NAME=VALUE")
      ->expected(1)
      ->take_all()
      ->check(CheckAssignment)
      ->group(kStateGroup);
}

void LabelFlags::Fill(google::protobuf::Map<std::string, std::string>* map) const {
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    (*map)[label.substr(0, equals)] = label.substr(equals + 1);
  }
}

void SamplingFlags::Declare(CLI::App* app) {
  const auto add = [app](const std::string& name, auto& value, const std::string& what,
                         const std::string& type) {
    return app->add_option(name, value, what)->type_name(type)->group(kSamplingGroup);
  };
  add("--max-tokens", max_tokens, "Generate at most that many; 0 = only read the prompt", "N");
  add("--min-tokens", min_tokens, "No end of sequence before that many", "N");
  add("--temperature", temperature, "0 = always the likeliest token", "T");
  add("--top-k", top_k, "Sample among the K likeliest; 0 = off", "K");
  add("--top-p", top_p, "Sample among the likeliest that sum to P", "P");
  add("--min-p", min_p, "Drop tokens below P times the likeliest", "P");
  add("--repetition-penalty", repetition_penalty, "Above 1 = repeat less", "X");
  add("--presence-penalty", presence_penalty, "Taken off tokens that occurred", "X");
  add("--frequency-penalty", frequency_penalty, "Taken off for each occurrence", "X");
  add("--seed", seed, "Same seed, same state, same prompt: same text", "N");
  add("--logit-bias", logit_bias, "Added to a token's logit; may be repeated", "ID=BIAS")
      ->expected(1)
      ->take_all()
      ->check(CheckLogitBias);
  add("--stop", stop_strings, "End before this text; may be repeated", "TEXT")
      ->expected(1)
      ->take_all();
  add("--stop-token", stop_token_ids, "End at this token id; may be repeated", "ID")
      ->expected(1)
      ->take_all();
  app->add_flag("--ignore-eos", ignore_eos, "Go on past the end of sequence")
      ->group(kSamplingGroup);
  app->add_flag("--no-prefix-reuse", no_prefix_reuse,
                "Compute all of a new thread's prompt, whatever states are stored")
      ->group(kStateGroup);
  add("--logprobs", logprobs, "Log-probabilities: of the chosen token and the N likeliest", "N");
  add("--priority", priority, "Higher is served first", "N");
}

void SamplingFlags::Fill(v1::GenerateRequest* request) const {
  v1::Sampling* sampling = request->mutable_sampling();
  if (max_tokens) request->set_max_tokens(*max_tokens);
  if (min_tokens) request->set_min_tokens(*min_tokens);
  if (priority) request->set_priority(*priority);
  if (no_prefix_reuse) request->set_prefix_reuse(false);
  if (temperature) sampling->set_temperature(*temperature);
  if (top_k) sampling->set_top_k(*top_k);
  if (top_p) sampling->set_top_p(*top_p);
  if (min_p) sampling->set_min_p(*min_p);
  if (repetition_penalty) sampling->set_repetition_penalty(*repetition_penalty);
  if (presence_penalty) sampling->set_presence_penalty(*presence_penalty);
  if (frequency_penalty) sampling->set_frequency_penalty(*frequency_penalty);
  if (seed) sampling->set_seed(*seed);
  if (logprobs) sampling->set_logprobs(*logprobs);
  for (const std::string& text : logit_bias) {
    if (const auto entry = ParseLogitBias(text)) {
      (*sampling->mutable_logit_bias())[entry->token_id] = entry->bias;
    }
  }
  for (const std::string& stop : stop_strings) request->mutable_stops()->add_strings(stop);
  for (int32_t id : stop_token_ids) request->mutable_stops()->add_token_ids(id);
  request->mutable_stops()->set_ignore_eos(ignore_eos);
}

void StateFlags::Declare(CLI::App* app) {
  app->add_option("--session", session, "Go on from this session's head, and move it")
      ->type_name("NAME")
      ->group(kStateGroup);
  auto* state_option = app->add_option("--state", state, "Go on from this state")
                           ->type_name("ID")
                           ->group(kStateGroup);
  app->add_flag("--fresh", fresh, "Start from nothing, even where the session exists")
      ->excludes(state_option)
      ->group(kStateGroup);
  app->add_option("--save", save,
                  "none, or any of end, prompt, every=N[,keep=K] with commas between")
      ->type_name("WHEN")
      ->check(CheckSavePolicy)
      ->capture_default_str()
      ->group(kStateGroup);
  app->add_option("--codec", codec, "How states are stored: raw, zstd, bf16; default: the server's")
      ->type_name("CODEC")
      ->check(CLI::IsMember({"raw", "zstd", "bf16"}))
      ->group(kStateGroup);
  app->add_option("--ttl", ttl_seconds, "Saved states expire after that long; default: never")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 1e10))
      ->group(kStateGroup);
  labels.Declare(app, "Label of the saved states; may be repeated");
  app->add_option("--etag", etag, "Only if the session's etag is still this")
      ->type_name("ETAG")
      ->group(kStateGroup);
  app->add_option("--request-id", request_id, "A retry with the same id replays the result")
      ->type_name("ID")
      ->group(kStateGroup);
}

void StateFlags::Fill(v1::GenerateRequest* request) const {
  if (!state.empty()) request->set_state_id(state);
  if (fresh) request->set_fresh(true);
  request->set_session(session);
  request->set_expected_etag(etag);
  request->set_request_id(request_id);
  // Checked when the flags were parsed.
  (void)ParseSavePolicy(save, request->mutable_save());
  request->mutable_save()->set_codec(codec);
  labels.Fill(request->mutable_labels());
  if (ttl_seconds > 0) {
    const double whole_seconds = std::floor(ttl_seconds);
    request->mutable_ttl()->set_seconds(static_cast<int64_t>(whole_seconds));
    request->mutable_ttl()->set_nanos(static_cast<int32_t>((ttl_seconds - whole_seconds) * 1e9));
  }
}

}  // namespace vivarium::cli
