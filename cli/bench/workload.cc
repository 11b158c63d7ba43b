#include "cli/bench/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace vivarium::cli::bench {
namespace {

constexpr int kAbortedCode = 10;  // gRPC's ABORTED
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

uint64_t Mix(uint64_t value) {  // splitmix64's finaliser
  value += kGolden;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

constexpr Scenario kMixable[] = {Scenario::kFresh, Scenario::kLong,   Scenario::kResume,
                                 Scenario::kFork,  Scenario::kThread, Scenario::kReconnect};

}  // namespace

const char* ScenarioName(Scenario scenario) {
  constexpr const char* kNames[] = {"fresh",  "long",      "resume",      "fork_parent", "fork",
                                    "thread", "reconnect", "reconnected", "trace"};
  return kNames[static_cast<int>(scenario)];
}

absl::StatusOr<std::vector<std::pair<Scenario, double>>> ParseMix(const std::string& text) {
  std::vector<std::pair<Scenario, double>> mix;
  const std::vector<std::string> words = absl::StrSplit(text, ',');
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    double share = 1;
    const auto* scenario =
        std::find_if(std::begin(kMixable), std::end(kMixable),
                     [&name](Scenario candidate) { return name == ScenarioName(candidate); });
    const bool is_number =
        equals == std::string::npos || absl::SimpleAtod(word.substr(equals + 1), &share);
    if (scenario == std::end(kMixable) || !is_number || !std::isfinite(share) || share <= 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", word,
          "' is not NAME or NAME=SHARE with SHARE > 0 and NAME one of: fresh, long, resume, fork, "
          "thread, reconnect"));
    }
    mix.emplace_back(*scenario, share);
  }
  return mix;
}

absl::StatusOr<TokenRange> ParseTokenRange(const std::string& text, int32_t least) {
  TokenRange range;
  const size_t colon = text.find(':');
  const bool is_good =
      absl::SimpleAtoi(text.substr(0, colon), &range.min) &&
      (colon == std::string::npos || absl::SimpleAtoi(text.substr(colon + 1), &range.max));
  if (colon == std::string::npos) range.max = range.min;
  if (!is_good || range.min < least || range.max < range.min || range.max > kMaxRangeTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not N or MIN:MAX in ", least, " .. ", kMaxRangeTokens));
  }
  return range;
}

Workload::Workload(WorkloadOptions options, std::vector<Prompt> prompts,
                   std::vector<TraceRow> trace)
    : options_(std::move(options)),
      prompts_(std::move(prompts)),
      trace_(std::move(trace)),
      random_(options_.seed) {}

int32_t Workload::Draw(const TokenRange& range) {
  return std::uniform_int_distribution<int32_t>(range.min, range.max)(random_);
}

std::vector<int32_t> Workload::Tokens(int32_t count, uint64_t seed) const {
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(count));
  const auto vocab = static_cast<uint64_t>(std::max<int64_t>(options_.vocab_size, 1));
  for (uint64_t draw = 0; tokens.size() < static_cast<size_t>(count); ++draw) {
    const auto id = static_cast<int32_t>(Mix(seed * kGolden + draw) % vocab);
    const auto& special = options_.special_ids;
    const bool is_special = std::find(special.begin(), special.end(), id) != special.end();
    // A vocabulary of nothing but special ids doesn't exist; the second test keeps this bounded.
    if (!is_special || draw > 100 * static_cast<uint64_t>(count)) tokens.push_back(id);
  }
  return tokens;
}

void Workload::SetInput(const TokenRange& range, CallSpec* spec) {
  const uint64_t index = options_.same_prompts ? 0 : num_drawn_;
  if (prompts_.empty() || spec->scenario == Scenario::kLong) {
    spec->token_ids = Tokens(Draw(range), Mix(options_.seed) + index);
    return;
  }
  if (spec->scenario == Scenario::kThread) {
    const Prompt& prompt = prompts_[static_cast<size_t>(spec->group) % prompts_.size()];
    spec->text = prompt.turns[thread_turns_[spec->group] % prompt.turns.size()];
    return;
  }
  spec->text = prompts_[index % prompts_.size()].turns.front();
}

CallSpec Workload::Spec(Scenario scenario, const TokenRange& input) {
  ++num_drawn_;
  CallSpec spec;
  spec.scenario = scenario;
  if (scenario == Scenario::kThread) TakeThread(&spec);
  SetInput(input, &spec);
  spec.max_tokens = Draw(options_.output);
  spec.seed = options_.seed + (options_.same_prompts ? 0 : num_drawn_);
  spec.temperature = options_.temperature;
  spec.ignore_eos = options_.ignore_eos;
  if (Uniform() < options_.slow_reader_rate) spec.read_delay_seconds = options_.slow_read_seconds;
  if (Uniform() < options_.cancel_rate && spec.max_tokens >= 2) {
    spec.cancel_after_tokens = Draw({1, spec.max_tokens - 1});
  }
  return spec;
}

void Workload::TakeThread(CallSpec* spec) {
  if (num_threads_made_ < options_.num_threads || free_threads_.empty()) {
    spec->group = num_threads_made_++;
    sessions_.push_back(absl::StrCat("bench-", options_.run_id, "-t", spec->group));
  } else {
    spec->group = free_threads_.front();  // the one that has been away longest
    free_threads_.pop_front();
  }
  spec->session = absl::StrCat("bench-", options_.run_id, "-t", spec->group);
  spec->save_at_end = true;
}

std::vector<CallSpec> Workload::Preparation() {
  std::vector<CallSpec> specs;
  const bool is_needed =
      std::any_of(options_.mix.begin(), options_.mix.end(),
                  [](const auto& part) { return part.first == Scenario::kResume; });
  for (int i = 0; is_needed && i < options_.num_states; ++i) {
    CallSpec spec = Spec(Scenario::kForkParent, options_.context);
    spec.max_tokens = 0;
    spec.cancel_after_tokens = 0;
    spec.read_delay_seconds = 0;
    spec.save_at_end = true;
    specs.push_back(std::move(spec));
  }
  return specs;
}

void Workload::Prepared(const CallResult& result) {
  if (!result.state_id.empty()) states_.push_back(result.state_id);
}

Scenario Workload::DrawScenario() {
  double total = 0;
  for (const auto& [scenario, share] : options_.mix) total += share;
  double left = Uniform() * total;
  for (const auto& [scenario, share] : options_.mix) {
    left -= share;
    if (left < 0) return scenario;
  }
  return options_.mix.back().first;
}

CallSpec Workload::Next() {
  switch (DrawScenario()) {
    case Scenario::kLong:
      return Spec(Scenario::kLong, options_.long_input);
    case Scenario::kResume: {
      CallSpec spec = Spec(Scenario::kResume, options_.input);
      if (!states_.empty()) spec.state_id = states_[num_drawn_ % states_.size()];
      return spec;
    }
    case Scenario::kFork: {
      CallSpec spec = Spec(Scenario::kForkParent, options_.context);
      spec.max_tokens = 0;
      spec.cancel_after_tokens = 0;
      spec.read_delay_seconds = 0;
      spec.save_at_end = true;
      return spec;
    }
    case Scenario::kThread:
      return Spec(Scenario::kThread, options_.input);
    case Scenario::kReconnect: {
      CallSpec spec = Spec(Scenario::kReconnect, options_.input);
      spec.session = absl::StrCat("bench-", options_.run_id, "-r", num_drawn_);
      sessions_.push_back(spec.session);
      spec.max_tokens = std::max(spec.max_tokens, 2);
      spec.cancel_after_tokens = Draw({1, spec.max_tokens - 1});
      spec.read_delay_seconds = 0;
      spec.save_at_end = true;
      spec.own_connection = true;
      return spec;
    }
    default:
      return Spec(Scenario::kFresh, options_.input);
  }
}

CallSpec Workload::OfTraceRow(size_t row_index) {
  const TraceRow& row = trace_[row_index];
  const int32_t length = std::max(row.input_tokens, 1);
  CallSpec spec = Spec(Scenario::kTrace, {1, 1});
  spec.group = static_cast<int64_t>(row_index);
  spec.text = {};
  spec.max_tokens = row.output_tokens;
  spec.cancel_after_tokens = std::min(spec.cancel_after_tokens, std::max(row.output_tokens - 1, 0));
  spec.token_ids.clear();
  if (row.hash_ids.empty()) {
    spec.token_ids = Tokens(length, Mix(options_.seed) + num_drawn_);
    return spec;
  }
  for (size_t block = 0; static_cast<int32_t>(spec.token_ids.size()) < length; ++block) {
    const int32_t left = length - static_cast<int32_t>(spec.token_ids.size());
    const uint64_t id = block < row.hash_ids.size() ? static_cast<uint64_t>(row.hash_ids[block])
                                                    : Mix(row_index) + block;
    const auto tokens = Tokens(std::min(left, kTraceBlockTokens), Mix(id));
    spec.token_ids.insert(spec.token_ids.end(), tokens.begin(), tokens.end());
  }
  ReuseTracePrefix(row, &spec);
  return spec;
}

// States are kept where whole blocks end; the longest known prefix that leaves something to read is
// resumed. A kept state has the token after it pending, which is why that one isn't sent again.
void Workload::ReuseTracePrefix(const TraceRow& row, CallSpec* spec) const {
  spec->save_every_tokens = kTraceBlockTokens;
  const size_t num_blocks = std::min(
      row.hash_ids.size(), (spec->token_ids.size() - 1) / static_cast<size_t>(kTraceBlockTokens));
  uint64_t hash = 0;
  size_t reused_blocks = 0;
  for (size_t block = 0; block < num_blocks; ++block) {
    hash = Mix(hash ^ Mix(static_cast<uint64_t>(row.hash_ids[block])));
    const auto state = states_of_prefixes_.find(hash);
    const size_t end = (block + 1) * kTraceBlockTokens + 1;
    if (state == states_of_prefixes_.end() || end >= spec->token_ids.size()) continue;
    spec->state_id = state->second;
    reused_blocks = block + 1;
  }
  if (reused_blocks == 0) return;
  const auto sent = static_cast<ptrdiff_t>(reused_blocks * kTraceBlockTokens + 1);
  spec->token_ids.erase(spec->token_ids.begin(), spec->token_ids.begin() + sent);
}

bool Workload::IsToBeRetried(const CallResult& result) const {
  const Scenario scenario = result.record.scenario;
  return (scenario == Scenario::kReconnected || scenario == Scenario::kThread) &&
         result.record.code == kAbortedCode && result.spec.retries < kMaxRetries;
}

std::vector<CallSpec> Workload::Follow(const CallResult& result) {
  std::vector<CallSpec> specs;
  switch (result.record.scenario) {
    case Scenario::kForkParent:
      if (result.state_id.empty()) break;
      for (int i = 0; i < options_.fork_children; ++i) {
        specs.push_back(Spec(Scenario::kFork, options_.input));
        specs.back().state_id = result.state_id;
      }
      break;
    case Scenario::kThread:
      ++thread_turns_[result.spec.group];
      free_threads_.push_back(result.spec.group);
      break;
    case Scenario::kReconnect: {
      const auto left = result.spec.max_tokens - static_cast<int32_t>(result.record.output_tokens);
      if (!result.record.was_cut || left < 1) break;
      CallSpec spec = result.spec;
      spec.scenario = Scenario::kReconnected;
      spec.max_tokens = left;
      spec.cancel_after_tokens = 0;
      specs.push_back(std::move(spec));
      break;
    }
    case Scenario::kTrace: {
      const TraceRow& row = trace_[static_cast<size_t>(result.spec.group)];
      for (const auto& [position, id] : result.saved) {
        const size_t num_blocks = position / kTraceBlockTokens;
        if (position % kTraceBlockTokens != 0 || num_blocks > row.hash_ids.size()) continue;
        uint64_t hash = 0;
        for (size_t block = 0; block < num_blocks; ++block) {
          hash = Mix(hash ^ Mix(static_cast<uint64_t>(row.hash_ids[block])));
        }
        states_of_prefixes_.emplace(hash, id);
      }
      break;
    }
    default:
      break;
  }
  return specs;
}

}  // namespace vivarium::cli::bench
