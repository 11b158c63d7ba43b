// The flags that several commands share, in groups. Each group declares itself on a command and
// fills its part of a request.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::cli {

inline constexpr char kDefaultServer[] = "127.0.0.1:50051";

// --server, --timeout.
struct ConnectionFlags {
  std::string server = kDefaultServer;
  double timeout_seconds = 0;  // of one call; 0 = none

  void Declare(CLI::App* app);
};

// --json.
struct JsonFlag {
  bool json = false;

  void Declare(CLI::App* app, const std::string& what);
};

// --label NAME=VALUE, as often as you like.
struct LabelFlags {
  std::vector<std::string> labels;

  void Declare(CLI::App* app, const std::string& what);
  void Fill(google::protobuf::Map<std::string, std::string>* map) const;
};

// What to generate, and how: sampling, stops, lengths.
struct SamplingFlags {
  std::optional<int32_t> max_tokens, min_tokens, top_k, logprobs, priority;
  std::optional<float> temperature, top_p, min_p;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool no_prefix_reuse = false;

  void Declare(CLI::App* app);
  // Only what was given: the server knows the defaults.
  void Fill(v1::GenerateRequest* request) const;
};

// Where to go on from and what to keep: --session, --state, --fresh, --save, --ttl ...
struct StateFlags {
  std::string session, state, etag, request_id;
  bool fresh = false;
  std::string save = "end";
  std::string codec;  // "" = the server's
  double ttl_seconds = 0;
  LabelFlags labels;

  void Declare(CLI::App* app);
  void Fill(v1::GenerateRequest* request) const;
};

// "none", or "end", "prompt", "every=N", "keep=K" in any combination, with commas. INVALID_ARGUMENT
// naming the word that is none of them.
absl::Status ParseSavePolicy(const std::string& text, v1::SavePolicy* policy);

}  // namespace vivarium::cli
