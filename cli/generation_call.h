// One Generate call from its request to its last message, for `generate` and `chat`.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/client.h"
#include "cli/output.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::cli {

// What a stream said, whole.
struct GenerationResult {
  v1::Started started;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<v1::Logprobs> logprobs;
  std::vector<v1::State> saved;  // on the way, in order
  v1::Finished finished;
  bool is_finished = false;

  // The state to go on from: the one saved at the end, else the last one saved. "" = none.
  std::string StateId() const;
};

// Runs the call; `on_text` gets each delta's text as it comes. `result` holds what had come when an
// error ended it. A stream that ends without a `finished` is UNAVAILABLE.
grpc::Status RunGeneration(Client& client, const v1::GenerateRequest& request,
                           const std::function<void(std::string_view)>& on_text,
                           GenerationResult* result);

// Where a source state came from: "device", "host", "disk"; "none".
std::string TierName(v1::StateTier tier);

// The object that `generate --json` prints.
Json GenerationJson(const GenerationResult& result);

// "restored 210 tokens (device) · read 12 · wrote 64 at 123 tok/s · st_..."
std::string GenerationSummary(const GenerationResult& result);

}  // namespace vivarium::cli
