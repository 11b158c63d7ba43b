// ServerOptions: everything that a server is started with. `vivarium serve` fills it from flags and
// a config file; the names there are these, with dashes (--model, --store, --backups for the dirs).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/runtime/engine.h"

namespace vivarium::server {

struct ServerOptions {
  // A directory in Hugging Face layout. Required.
  std::string model_dir;

  // HOST:PORT of the gRPC port. Port 0 = chosen by the system. Hosts other than loopback ones
  // (127.x.y.z, [::1], localhost) need `insecure`: there is no encryption and no access control.
  std::string listen = "127.0.0.1:50051";
  // HOST:PORT where Prometheus finds /metrics; likewise. "" = no metrics port.
  std::string metrics_listen = "127.0.0.1:9464";
  bool insecure = false;

  // Directory of the durable states, created when absent. Required. kMemoryStore keeps states in
  // memory only: nothing survives the process.
  std::string store_dir;
  // Directory below which Admin.Backup makes new directories. "" = backups are refused.
  std::string backups_dir;

  std::string device = "cpu";       // kernels/backend.h
  std::string weights = "auto";     // "auto", "bf16", "f32", "int8": engine/model/model.h
  std::string state_dtype = "f32";  // "f32", "bf16": ModelOptions::state_dtype
  bool deterministic = false;       // kernels/backend.h
  std::string isa;                  // "" = the best this processor has: kernels/backend.h
  int32_t threads = 0;              // CPU threads of the kernels; 0 = one per available core

  // The engine's sizes: engine/runtime/engine.h.
  int32_t max_slots = engine::kAutoSlots;  // or a number
  int32_t max_live_streams = 256;
  int32_t max_queued_streams = 1024;
  int64_t max_queued_tokens = 1 << 22;
  // Streams that would wait longer than that before they begin are refused; 0 = no such bound.
  int32_t max_queue_seconds = 60;
  int32_t max_num_batched_tokens = 512;
  int32_t prefill_chunk = 128;
  int32_t prefill_beside_decode = 64;
  int32_t time_slice_tokens = 64;

  // What one request may ask for.
  int32_t default_max_tokens = 256;  // where a request names none
  int32_t max_tokens = 1 << 20;      // more is INVALID_ARGUMENT
  int32_t max_prompt_tokens = 1 << 20;

  // A connection that old is closed, when its calls have ended; 0 = never. For load balancers.
  int32_t max_connection_age_seconds = 0;

  // Chat format by name, for models whose chat_template is not a known one. "" = the template's.
  std::string chat_format;

  // States. 0 = states of requests without a ttl never expire.
  int64_t default_ttl_seconds = 0;
  // Snapshots on the way, of streams that save their end and don't say: every so many tokens, 0 =
  // none; and how many of the newest are kept (server/README.md, "Thinning").
  int32_t snapshot_every = 0;
  int32_t snapshot_keep = 8;
  std::string codec = "raw";  // of states whose request names none: "raw", "zstd", "bf16"
  // Prefix reuse (README.md): whether threads from nothing go on from stored states that have
  // consumed the same first tokens where a request doesn't say; how many states are stored for that
  // by the server itself, 0 = none, and for how long after their last use, 0 = for ever.
  std::string prefix_reuse = "on";  // "on", "off"
  int32_t prefix_max_states = 64;
  int64_t prefix_ttl_seconds = 3600;
  // How fast stored states are read again to find damage before it is met; 0 = never.
  int64_t scrub_bytes_per_second = int64_t{4} << 20;
  // Host memory for states that were saved or loaded last; 0 = none.
  int64_t state_cache_bytes = int64_t{256} << 20;
  int64_t disk_reserve_bytes = int64_t{256} << 20;  // rocksdb_store.h
  // Of each tenant, quota.h: its states at most, and their bytes as stored. 0 = no limit.
  int64_t quota_states = 0;
  int64_t quota_bytes = 0;
  int32_t sweep_seconds = 60;  // how often expired states and requests are dropped
  // How long finished requests are remembered for idempotent retries (the store bounds how many).
  int32_t request_ttl_seconds = 3600;

  int32_t drain_seconds = 30;  // that streams get to finish on a drain, unless it says otherwise
  int32_t io_threads = 4;      // that wait for the store

  std::string log_level = "info";  // "debug", "info", "warn", "error", "off"; to stderr
};

inline constexpr std::string_view kMemoryStore = "memory:";
inline constexpr int32_t kMaxPrefixStates = 1 << 16;  // ServerOptions::prefix_max_states at most

// INVALID_ARGUMENT naming the first bad option, its value and what is expected; FAILED_PRECONDITION
// for an address that needs `insecure`. Looks at the values only, not at files or devices.
absl::Status ValidateServerOptions(const ServerOptions& options);

// HOST:PORT taken apart; INVALID_ARGUMENT naming `option` when it is not that.
struct HostPort {
  std::string host;  // without brackets
  int port = 0;
  bool is_loopback = false;
};
absl::Status ParseHostPort(std::string_view option, std::string_view address, HostPort* out);

}  // namespace vivarium::server
