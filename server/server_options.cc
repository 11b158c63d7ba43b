#include "server/server_options.h"

#include <arpa/inet.h>

#include <charconv>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/request.h"
#include "statestore/snapshot_thinning.h"

namespace vivarium::server {
namespace {

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

struct IntRange {
  const char* name;
  int64_t value;
  int64_t min;
  int64_t max;
};

absl::Status CheckRange(const IntRange& range) {
  if (range.value >= range.min && range.value <= range.max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", range.name, " is ", range.value,
                                                 "; expected ", range.min, " .. ", range.max));
}

absl::Status CheckChoice(const char* name, const std::string& value,
                         std::initializer_list<const char*> choices) {
  std::string expected;
  for (const char* choice : choices) {
    if (value == choice) return absl::OkStatus();
    absl::StrAppend(&expected, expected.empty() ? "\"" : ", \"", choice, "\"");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, " is \"", value, "\"; expected one of ", expected));
}

bool IsLoopback(const std::string& host) {
  if (host == "localhost") return true;
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return false;
}

absl::Status CheckAddress(std::string_view option, const std::string& address, bool insecure) {
  HostPort parsed;
  absl::Status status = ParseHostPort(option, address, &parsed);
  if (!status.ok() || parsed.is_loopback || insecure) return status;
  return absl::FailedPreconditionError(
      absl::StrCat("--", Absl(option), " is \"", address,
                   "\", which other machines can reach, and there is neither encryption nor access "
                   "control; expected a loopback address such as 127.0.0.1:50051, or --insecure"));
}

absl::Status CheckSizes(const ServerOptions& o) {
  constexpr int64_t kDay = 24 * 3600;
  const IntRange ranges[] = {
      {"threads", o.threads, 0, 256},
      {"max-slots", o.max_slots == engine::kAutoSlots ? 1 : o.max_slots, 1, engine::kMaxSlots},
      {"max-live-streams", o.max_live_streams, 1, 1 << 16},
      {"max-queued-streams", o.max_queued_streams, 1, 1 << 16},
      {"max-queued-tokens", o.max_queued_tokens, 1, engine::kMaxQueuedTokens},
      {"max-queue-seconds", o.max_queue_seconds, 0, kDay},
      {"max-num-batched-tokens", o.max_num_batched_tokens, 1, 1 << 16},
      {"prefill-chunk", o.prefill_chunk, 1, 1 << 16},
      {"prefill-beside-decode", o.prefill_beside_decode, 1, 1 << 16},
      {"time-slice-tokens", o.time_slice_tokens, 1, 1 << 20},
      {"max-tokens", o.max_tokens, 1, 1 << 24},
      {"default-max-tokens", o.default_max_tokens, 1, o.max_tokens},
      {"max-prompt-tokens", o.max_prompt_tokens, 1, 1 << 22},
      {"max-connection-age-seconds", o.max_connection_age_seconds, 0, 14 * kDay},
      {"default-ttl-seconds", o.default_ttl_seconds, 0, 100 * 366 * kDay},
      {"prefix-max-states", o.prefix_max_states, 0, kMaxPrefixStates},
      {"prefix-ttl-seconds", o.prefix_ttl_seconds, 0, 100 * 366 * kDay},
      // 0, or what a request may ask for.
      {"snapshot-every", o.snapshot_every, o.snapshot_every == 0 ? 0 : kMinSaveEveryTokens,
       1 << 24},
      {"snapshot-keep", o.snapshot_keep, 1, statestore::kMaxKeptNewest},
      {"scrub-bytes-per-second", o.scrub_bytes_per_second, 0, int64_t{1} << 40},
      {"state-cache-bytes", o.state_cache_bytes, 0, int64_t{1} << 50},
      {"disk-reserve-bytes", o.disk_reserve_bytes, 0, int64_t{1} << 60},
      {"quota-states", o.quota_states, 0, int64_t{1} << 40},
      {"quota-bytes", o.quota_bytes, 0, int64_t{1} << 60},
      {"sweep-seconds", o.sweep_seconds, 1, kDay},
      {"request-ttl-seconds", o.request_ttl_seconds, 1, 30 * kDay},
      {"drain-seconds", o.drain_seconds, 0, kDay},
  };
  for (const IntRange& range : ranges) {
    if (absl::Status status = CheckRange(range); !status.ok()) return status;
  }
  if (o.max_live_streams < o.max_slots) {
    return absl::InvalidArgumentError(absl::StrCat("--max-live-streams is ", o.max_live_streams,
                                                   "; expected at least --max-slots, ",
                                                   o.max_slots));
  }
  if (o.max_num_batched_tokens < o.max_slots) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-num-batched-tokens is ", o.max_num_batched_tokens,
                     "; expected at least --max-slots, ", o.max_slots));
  }
  return CheckRange({"io-threads", o.io_threads, 1, 64});
}

}  // namespace

absl::Status ParseHostPort(std::string_view option, std::string_view address, HostPort* out) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat("--", Absl(option), " is \"", Absl(address),
                                                   "\"; expected HOST:PORT, port 0 .. 65535"));
  };
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == address.size()) return bad();
  std::string_view host = address.substr(0, colon);
  const std::string_view port = address.substr(colon + 1);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return bad();
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad();  // IPv6 without brackets
  }
  for (const char c : host) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                          (c >= '0' && c <= '9') || c == '.' || c == '-' || c == ':' || c == '_';
    if (!is_plain) return bad();
  }
  int value = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), value);
  if (error != std::errc() || end != port.data() + port.size() || value < 0 || value > 65535) {
    return bad();
  }
  out->host = std::string(host);
  out->port = value;
  out->is_loopback = IsLoopback(out->host);
  return absl::OkStatus();
}

absl::Status ValidateServerOptions(const ServerOptions& options) {
  if (options.model_dir.empty()) {
    return absl::InvalidArgumentError("--model is empty; expected a model's directory");
  }
  if (options.store_dir.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--store is empty; expected a directory, or \"", Absl(kMemoryStore), "\""));
  }
  absl::Status status = CheckAddress("listen", options.listen, options.insecure);
  if (status.ok() && !options.metrics_listen.empty()) {
    status = CheckAddress("metrics-listen", options.metrics_listen, options.insecure);
  }
  if (status.ok())
    status = CheckChoice("weights", options.weights, {"auto", "bf16", "f32", "int8"});
  if (status.ok()) status = CheckChoice("state-dtype", options.state_dtype, {"f32", "bf16"});
  if (status.ok()) {
    status = CheckChoice("log-level", options.log_level, {"debug", "info", "warn", "error", "off"});
  }
  if (status.ok()) status = CheckChoice("codec", options.codec, {"raw", "zstd", "bf16"});
  if (status.ok()) status = CheckChoice("prefix-reuse", options.prefix_reuse, {"on", "off"});
  if (status.ok() && options.device.empty()) {
    status = absl::InvalidArgumentError("--device is empty; expected e.g. \"cpu\"");
  }
  if (status.ok()) status = CheckSizes(options);
  return status;
}

}  // namespace vivarium::server
