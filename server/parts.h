// Parts: what the services share. Made once by Server, which outlives every call.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "engine/checkpoint/model_config.h"
#include "engine/runtime/engine.h"
#include "engine/text/chat.h"
#include "engine/text/tokenizer.h"
#include "server/errors.h"
#include "server/executor.h"
#include "server/server_options.h"
#include "server/session_manager.h"
#include "server/write_pump.h"
#include "statestore/state_id.h"
#include "statestore/state_store.h"

namespace spdlog {
class logger;
}  // namespace spdlog

namespace vivarium::server {

class Admission;
class Metrics;
class PrefixReuse;

// The only tenant for now; every key of the store carries it.
inline const std::string& DefaultTenant() {
  static const std::string* const kTenant = new std::string("default");
  return *kTenant;
}

// What is known about the served model, besides its config.
struct ModelFacts {
  std::string name;  // the directory's
  engine::ModelConfig config;
  engine::ModelIdentity identity;
  engine::StateLayout layout;
  engine::GenerationDefaults generation_defaults;
  uint64_t weight_bytes = 0;
  uint64_t num_parameters = 0;
  std::string device;
  std::string isa;
  int32_t num_threads = 0;
};

struct Parts {
  ServerOptions options;
  ModelFacts model;
  const engine::Tokenizer* tokenizer = nullptr;  // null: token ids only
  std::optional<engine::ChatFormat> chat_format;
  std::string no_chat_reason;  // why there is none

  engine::Engine* engine = nullptr;
  statestore::StateStore* store = nullptr;
  SessionManager* sessions = nullptr;
  PrefixReuse* prefixes = nullptr;  // null: no prefix is reused
  statestore::UlidGenerator* ids = nullptr;
  Admission* admission = nullptr;
  Executor* executor = nullptr;
  WritePump* pump = nullptr;
  Metrics* metrics = nullptr;
  spdlog::logger* log = nullptr;
  std::function<void(absl::Time deadline)> drain;  // begins one
  absl::Time started;

  std::atomic<bool> is_draining{false};
  std::atomic<bool> has_device_fault{false};
  std::atomic<int64_t> backup_copied_bytes{-1};  // of the one that is made now; -1 = none is
  std::atomic<int32_t> num_open_streams{0};      // Generate calls, stalled readers included

  // What new work is answered: OK, or why none is taken.
  absl::Status CheckServing() const {
    if (has_device_fault) return DeviceFaultError();
    return is_draining ? DrainingError() : absl::OkStatus();
  }

  // Generate calls at most: those that the engine holds, and as many again that have ended there
  // but whose clients have not read to the end.
  int32_t max_open_streams() const {
    return 2 * (options.max_live_streams + options.max_queued_streams);
  }
};

}  // namespace vivarium::server
