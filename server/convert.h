// The wire's messages <-> the structs of engine, store and request.h. All checks of requests that
// need no store are here.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/text/tokenizer.h"
#include "server/request.h"
#include "server/state_tier.h"
#include "statestore/state_store.h"
#include "vivarium/v1/generation.pb.h"
#include "vivarium/v1/sessions.pb.h"
#include "vivarium/v1/states.pb.h"

namespace vivarium::server {

v1::StateTier ToProto(StateTier tier);

// INVALID_ARGUMENT naming the first bad field, its value and what is expected.
absl::StatusOr<GenerateParams> ParseGenerate(const v1::GenerateRequest& request,
                                             const RequestLimits& limits);
absl::StatusOr<ScoreParams> ParseScore(const v1::ScoreRequest& request,
                                       const RequestLimits& limits);
absl::StatusOr<Input> ParseTokenize(const v1::TokenizeRequest& request,
                                    const RequestLimits& limits);

// Without transcript.
void ToProto(const statestore::StateManifest& manifest, v1::State* state);
// `head` is the manifest of session.head.
void ToProto(const statestore::Session& session, const statestore::StateManifest& head,
             v1::Session* out);
// Every field set.
void ToProto(const engine::SamplingParams& sampling, int32_t num_top_logprobs, v1::Sampling* out);

google::protobuf::Duration ToProto(absl::Duration duration);
google::protobuf::Timestamp ToProto(absl::Time time);
// INVALID_ARGUMENT naming `field` for what is no valid timestamp.
absl::StatusOr<absl::Time> ParseTime(std::string_view field,
                                     const google::protobuf::Timestamp& time);
// In [min, max]; INVALID_ARGUMENT naming `field` otherwise.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view field,
                                             const google::protobuf::Duration& duration,
                                             absl::Duration min, absl::Duration max);
statestore::Labels ParseLabels(const google::protobuf::Map<std::string, std::string>& labels);

// The texts of a thread's transcripts, state by state, oldest first. A character whose bytes are
// spread over several entries of one origin goes to the last of them.
class TranscriptWriter {
 public:
  // `tokenizer` may be null: then there are token ids only.
  explicit TranscriptWriter(const engine::Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  // The next state's transcript, into `state`.
  void Append(const statestore::StateManifest& manifest, v1::State* state);

 private:
  const engine::Tokenizer* const tokenizer_;
  std::string tail_;  // incomplete UTF-8 of the last entry
  bool tail_is_output_ = false;
};

}  // namespace vivarium::server
