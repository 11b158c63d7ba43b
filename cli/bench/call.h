// What a load test sends and what it notes down of each call: plain values without protobuf.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vivarium::cli::bench {

using Clock = std::chrono::steady_clock;

inline double SecondsBetween(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

enum class Scenario {
  kFresh,        // a new prompt from nothing
  kLong,         // the same with a long prompt
  kResume,       // new input on a state that was read beforehand
  kForkParent,   // reads a prompt and saves it: what the children of a fork resume
  kFork,         // one of several children of that state, sent all at once
  kThread,       // the next turn of a session that comes back
  kReconnect,    // a session's stream whose connection breaks half-way
  kReconnected,  // goes on from there over a new connection
  kTrace,        // a row of a trace
};
const char* ScenarioName(Scenario scenario);

struct CallSpec {
  Scenario scenario = Scenario::kFresh;
  std::vector<int32_t> token_ids;  // the input, or
  std::string text;                // this; both empty = go on from the pending token
  int32_t max_tokens = 0;
  std::string state_id;  // "" = from nothing, or from the session's head
  std::string session;   // "" = none
  bool save_at_end = false;
  uint32_t save_every_tokens = 0;
  uint64_t seed = 0;
  float temperature = 1;
  bool ignore_eos = true;
  int32_t cancel_after_tokens = 0;  // 0 = never
  double read_delay_seconds = 0;    // between reads; > 0 = a slow reader
  bool own_connection = false;      // a new one, closed with the call
  // For the workload: which thread, fan-out or trace row this belongs to.
  int64_t group = -1;
  int retries = 0;  // of a reconnection that found its session still being saved
};

// Times are seconds since the start of the run; 0 tokens: first and last token are -1.
struct CallRecord {
  uint64_t index = 0;
  Scenario scenario = Scenario::kFresh;
  double scheduled_s = 0;  // when it was due: latencies count from here
  double sent_s = 0;       // when the client got round to it
  double first_token_s = -1;
  double last_token_s = -1;
  double end_s = 0;
  uint32_t input_tokens = 0;  // sent, where token ids were; else as the server counted
  uint32_t output_tokens = 0;
  uint32_t num_deltas = 0;  // that carried tokens
  uint64_t restored_tokens = 0;
  std::string state_tier = "none";  // where the source state came from: device, host, disk
  uint64_t prefill_tokens = 0;
  double server_queue_s = 0;
  double max_gap_s = 0;
  bool was_cut = false;  // by the plan: cancelled or disconnected
  bool is_slow_reader = false;
  bool is_finished = false;  // with a `finished` message
  int code = 0;              // gRPC's; CANCELLED of a call that was cut is no error
  std::string error;

  bool ok() const { return was_cut || (code == 0 && is_finished); }
  double ttft_s() const { return first_token_s - scheduled_s; }
  double e2e_s() const { return end_s - scheduled_s; }
  // Mean time per output token after the first; < 0 where there are fewer than 2.
  double tpot_s() const {
    return output_tokens < 2
               ? -1
               : (last_token_s - first_token_s) / static_cast<double>(output_tokens - 1);
  }
};

struct TokenArrival {
  double at_s;
  uint32_t num_tokens;
};

struct CallResult {
  CallSpec spec;  // without its input
  CallRecord record;
  std::vector<TokenArrival> arrivals;                   // one per Delta with tokens
  std::vector<std::pair<uint64_t, std::string>> saved;  // position, state id
  std::string state_id;                                 // saved at the end; "" = none
};

}  // namespace vivarium::cli::bench
