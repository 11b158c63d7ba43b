// Workload: which request comes next, and what follows from the ends of others.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/call.h"
#include "cli/bench/prompts.h"
#include "cli/bench/trace.h"

namespace vivarium::cli::bench {

struct TokenRange {
  int32_t min = 0, max = 0;  // uniform in between, both included
};

struct WorkloadOptions {
  // Shares of requests; normalised. Only fresh, long, resume, fork, thread and reconnect.
  std::vector<std::pair<Scenario, double>> mix = {{Scenario::kFresh, 1}};
  TokenRange input{128, 128}, output{128, 128};
  TokenRange long_input{2048, 2048};
  TokenRange context{512, 512};  // of what is resumed: parents of forks, states read beforehand
  int fork_children = 8;
  int num_threads = 64;  // sessions that come back
  int num_states = 16;   // read beforehand for `resume`
  double cancel_rate = 0;
  double slow_reader_rate = 0;
  double slow_read_seconds = 0.1;
  float temperature = 1;
  bool ignore_eos = true;
  bool same_prompts = false;  // every request alike, for measuring reuse on purpose
  uint64_t seed = 1;
  int64_t vocab_size = 0;
  std::vector<int32_t> special_ids;
  std::string run_id;  // in the names of sessions
};

inline constexpr int kMaxRetries = 500;
inline constexpr int32_t kMaxRangeTokens = 10'000'000;

// "fresh=0.9,long=0.1". INVALID_ARGUMENT naming the word at fault.
absl::StatusOr<std::vector<std::pair<Scenario, double>>> ParseMix(const std::string& text);
// "128" or "64:256", of numbers in least .. 10,000,000.
absl::StatusOr<TokenRange> ParseTokenRange(const std::string& text, int32_t least);

// Same options and same order of calls: same requests. Not thread-safe.
class Workload {
 public:
  // `prompts` may be empty (synthetic tokens), `trace` too.
  Workload(WorkloadOptions options, std::vector<Prompt> prompts, std::vector<TraceRow> trace);

  // What must be read before the run: one call per state of `resume`.
  std::vector<CallSpec> Preparation();
  void Prepared(const CallResult& result);

  CallSpec Next();
  CallSpec OfTraceRow(size_t row);
  // A reconnection, or the next turn of a thread whose last one was cut, that came while its
  // session was still being saved: to be sent again shortly, under the same due time. At most
  // kMaxRetries times.
  bool IsToBeRetried(const CallResult& result) const;
  // What follows at once from the end of a call: children of a fork, the rest of a cut stream.
  std::vector<CallSpec> Follow(const CallResult& result);

  const std::vector<TraceRow>& trace() const { return trace_; }
  // Sessions that the calls so far have made.
  const std::vector<std::string>& sessions() const { return sessions_; }

 private:
  CallSpec Spec(Scenario scenario, const TokenRange& input);
  Scenario DrawScenario();
  int32_t Draw(const TokenRange& range);
  double Uniform() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  std::vector<int32_t> Tokens(int32_t count, uint64_t seed) const;
  void SetInput(const TokenRange& range, CallSpec* spec);
  void TakeThread(CallSpec* spec);
  void ReuseTracePrefix(const TraceRow& row, CallSpec* spec) const;

  const WorkloadOptions options_;
  const std::vector<Prompt> prompts_;
  const std::vector<TraceRow> trace_;
  std::mt19937_64 random_;
  uint64_t num_drawn_ = 0;
  std::vector<std::string> states_;
  std::deque<int64_t> free_threads_;
  std::map<int64_t, size_t> thread_turns_;
  int64_t num_threads_made_ = 0;
  std::vector<std::string> sessions_;
  std::map<uint64_t, std::string> states_of_prefixes_;  // hash of a prefix's block ids -> state
};

}  // namespace vivarium::cli::bench
