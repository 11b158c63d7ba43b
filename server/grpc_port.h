// GrpcPort: the gRPC server with every service, health and reflection.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/parts.h"

namespace vivarium::server {

// The health service's names: "" = the server; this one = whether it can save.
inline constexpr char kSavingHealth[] = "vivarium.saving";
inline constexpr int kMaxReceiveBytes = 10 << 20;  // kMaxTextBytes, or max_prompt_tokens ids, fit
// Of one connection: calls beyond wait in the client.
inline constexpr int kMaxCallsPerConnection = 1024;
inline constexpr int kMaxHeaderBytes = 16 << 10;  // of one call; more closes the connection
inline constexpr absl::Duration kMinPingInterval = absl::Seconds(10);  // of a client; else GOAWAY
inline constexpr absl::Duration kMaxIdle = absl::Minutes(30);  // of a connection without calls
// What gRPC may hold of messages on their way, over all connections; beyond it reading waits.
inline constexpr size_t kMaxTransportBytes = size_t{1} << 30;

// Thread-safe. Destruction closes at once.
class GrpcPort {
 public:
  // Serves at HOST:PORT. `parts` must be complete, and outlive it. UNAVAILABLE when the address
  // can't be bound.
  static absl::StatusOr<std::unique_ptr<GrpcPort>> Open(Parts* parts, const std::string& address);
  virtual ~GrpcPort() = default;

  virtual const std::string& address() const = 0;  // HOST:PORT as bound
  // What the health service says from now on.
  virtual void StopServing() = 0;
  // The same of kSavingHealth alone.
  virtual void SetSaving(bool can_save) = 0;
  // Takes no calls any more; those open are cancelled after `grace`. Returns when all have ended.
  virtual void Close(absl::Duration grace) = 0;
};

}  // namespace vivarium::server
