// LoadClient: many Generate calls at once over several connections, timed on arrival.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/bench/call.h"

namespace vivarium::cli::bench {

struct ServerFacts {
  std::string name, fingerprint, numerics_id, version, device, isa;
  int64_t vocab_size = 0;
  int64_t max_prompt_tokens = 0;
  int64_t max_tokens = 0;
  int64_t max_slots = 0;
  int64_t max_live_streams = 0;
  std::vector<int32_t> special_ids;  // not sent in synthetic prompts
};

struct LoadClientOptions {
  std::string server;
  int num_connections = 1;
  double call_timeout_seconds = 0;  // 0 = none
  double ttl_seconds = 3600;        // of what calls save
};

// Thread-safe. Every call must have ended before it is destroyed.
class LoadClient {
 public:
  // UNAVAILABLE when a connection doesn't stand within 5 s.
  static absl::StatusOr<std::unique_ptr<LoadClient>> Connect(const LoadClientOptions& options);
  ~LoadClient();

  absl::StatusOr<ServerFacts> GetServerFacts();
  // Sends at once. `done` is called once, on a thread of gRPC's; it must not block.
  void Start(CallSpec spec, uint64_t index, Clock::time_point run_start,
             Clock::time_point scheduled, std::function<void(CallResult)> done);
  // Cancels what is in flight.
  void CancelAll();
  // Waits for the answer.
  void DeleteSession(const std::string& name);
  // Output tokens received so far, for the live view.
  uint64_t tokens_received() const { return tokens_received_; }

 private:
  struct Connections;
  class GenerateReactor;
  LoadClient(const LoadClientOptions& options, std::unique_ptr<Connections> connections);

  const LoadClientOptions options_;
  std::unique_ptr<Connections> connections_;
  std::atomic<uint64_t> tokens_received_ = 0;
  std::atomic<uint64_t> next_connection_ = 0;
};

}  // namespace vivarium::cli::bench
