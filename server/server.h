// Server: a running Vivarium. Start here for the server.
//   checkpoint -> model -> tokenizer -> engine -> store -> services -> gRPC port
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/server_options.h"

namespace vivarium::server {

// Thread-safe. Destruction drains at once (running streams are checkpointed and told their state
// id), when nobody has drained before, and returns when every thread has ended.
class Server {
 public:
  // Loads the model, opens the store and serves: when it returns, calls are answered. Errors: those
  // of ValidateServerOptions, and what checkpoint, model, tokenizer, engine and store say about
  // files, devices and memory; UNAVAILABLE when an address can't be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  virtual ~Server() = default;

  // HOST:PORT as bound (never port 0).
  virtual std::string address() const = 0;
  // "" without a metrics port.
  virtual std::string metrics_address() const = 0;

  // Begins to drain and returns at once: new work is refused with UNAVAILABLE, health turns to
  // NOT_SERVING, running streams go on until `deadline` and are then checkpointed and told their
  // state id. The first drain's deadline stands; later calls do nothing. Not for signal handlers.
  virtual void Drain(absl::Time deadline) = 0;
  // Blocks until a drain, begun here, by the Admin service or by a fault of the device, is
  // complete: every stream has ended, every state is stored, the port is closed.
  virtual void WaitUntilDrained() = 0;
  // OK, or UNAVAILABLE naming the fault of the device that began the drain: the process is of no
  // more use, and another one in its place finds every state that was saved.
  virtual absl::Status fault() = 0;
};

}  // namespace vivarium::server
