#include "cli/serve_flags.h"

#include "absl/status/status.h"
#include "cli/config_file.h"
#include "cli/paths.h"

namespace vivarium::cli {
namespace {

// Declares options of ServerOptions. The type names of numbers tell the config file.
class Declarer {
 public:
  explicit Declarer(CLI::App* app) : app_(app) {}

  void Group(const std::string& group) { group_ = group; }
  CLI::Option* Text(const std::string& name, std::string& value, const std::string& what,
                    const std::string& type) {
    CLI::Option* option = app_->add_option(name, value, what)->type_name(type)->group(group_);
    if (!value.empty()) option->capture_default_str();
    return option;
  }
  template <typename Int>
  void Number(const std::string& name, Int& value, const std::string& what) {
    app_->add_option(name, value, what)->type_name(kNumber)->capture_default_str()->group(group_);
  }
  // "auto" stands for the number `auto_value`, which is negative; no other negative one is taken.
  void NumberOrAuto(const std::string& name, int32_t& value, int32_t auto_value,
                    const std::string& what) {
    const auto read = [auto_value](std::string& text) -> std::string {
      if (text == "auto") {
        text = std::to_string(auto_value);
        return "";
      }
      return text.rfind('-', 0) == 0 ? "expected a number or auto" : "";
    };
    app_->add_option(name, value, what)
        ->transform(CLI::Validator(read, /*validator_desc=*/""))
        ->type_name(kNumberOrAuto)
        ->default_str("auto")
        ->group(group_);
  }
  void Flag(const std::string& name, bool& value, const std::string& what) {
    app_->add_flag(name, value, what)->group(group_);
  }

 private:
  CLI::App* app_;
  std::string group_;
};

void DeclareScheduling(Declarer& add, server::ServerOptions& options) {
  add.Group("Scheduling");
  add.NumberOrAuto("--max-slots", options.max_slots, engine::kAutoSlots,
                   "States on the device at once; auto: what a GPU's memory holds, 64 on a CPU");
  add.Number("--max-live-streams", options.max_live_streams, "Streams that share them in turns");
  add.Number("--max-queued-streams", options.max_queued_streams,
             "Streams that wait; more are refused");
  add.Number("--max-queued-tokens", options.max_queued_tokens, "Prompt tokens that wait; likewise");
  add.Number("--max-queue-seconds", options.max_queue_seconds,
             "Streams that would wait longer are refused; 0 = no such bound");
  add.Number("--max-num-batched-tokens", options.max_num_batched_tokens, "Tokens of one step");
  add.Number("--prefill-chunk", options.prefill_chunk, "Prompt tokens of one stream in one step");
  add.Number("--prefill-beside-decode", options.prefill_beside_decode,
             "Prompt tokens of one step while others generate");
  add.Number("--time-slice-tokens", options.time_slice_tokens, "Tokens before a stream gives way");
  add.Group("Limits");
  add.Number("--default-max-tokens", options.default_max_tokens,
             "Where a request names no --max-tokens");
  add.Number("--max-tokens", options.max_tokens, "That a request may ask for");
  add.Number("--max-prompt-tokens", options.max_prompt_tokens, "In one request");
  add.Number("--max-connection-age-seconds", options.max_connection_age_seconds,
             "Older connections are closed once their calls end; 0 = never");
}

void DeclareStates(Declarer& add, server::ServerOptions& options) {
  add.Group("States");
  add.Text("--chat-format", options.chat_format, "Format of chats; default: the model's", "NAME");
  add.Number("--default-ttl-seconds", options.default_ttl_seconds, "Of states; 0 = for ever");
  add.Number("--snapshot-every", options.snapshot_every,
             "Streams that save their end also save every so many tokens; 0 = no");
  add.Number("--snapshot-keep", options.snapshot_keep,
             "Of those the newest that are kept; further back ever fewer");
  add.Text("--codec", options.codec, "How states are stored: raw, zstd, or bf16 (rounds)", "CODEC");
  add.Text("--prefix-reuse", options.prefix_reuse,
           "on or off: go on from stored states that begin as a prompt does", "ON|OFF");
  add.Number("--prefix-max-states", options.prefix_max_states,
             "Stored by the server itself where prompts part; 0 = none");
  add.Number("--prefix-ttl-seconds", options.prefix_ttl_seconds,
             "Of these, from their last use; 0 = for ever");
  add.Number("--state-cache-bytes", options.state_cache_bytes,
             "Host memory for the states used last; 0 = none");
  add.Number("--scrub-bytes-per-second", options.scrub_bytes_per_second,
             "Stored states are read again that fast, to find damage; 0 = never");
  add.Number("--disk-reserve-bytes", options.disk_reserve_bytes,
             "Below so much free disk nothing is saved, until there is space");
  add.Number("--quota-states", options.quota_states, "States that may be stored; 0 = no limit");
  add.Number("--quota-bytes", options.quota_bytes, "Bytes that they may take; 0 = no limit");
  add.Number("--sweep-seconds", options.sweep_seconds, "Between looks for expired states");
  add.Number("--request-ttl-seconds", options.request_ttl_seconds,
             "That a request id is remembered");
}

}  // namespace

void ServeFlags::Declare(CLI::App* app) {
  server::ServerOptions& o = options;
  Declarer add(app);
  add.Group("What and where");
  add.Text("--config", config_file, "TOML file with these settings; flags come before it", "FILE")
      ->configurable(false);
  add.Text("--model", o.model_dir, "Model directory; default: the bundled model", "DIR");
  add.Text("--store", o.store_dir,
           "Where states live; default: the user's data directory; memory: = nowhere", "DIR");
  add.Text("--backups", o.backups_dir, "Where Admin.Backup may write; default: nowhere", "DIR");
  add.Text("--listen", o.listen, "gRPC address; port 0 = any free one", "HOST:PORT");
  add.Text("--metrics-listen", o.metrics_listen, "Prometheus address; '' = none", "HOST:PORT");
  add.Flag("--insecure", o.insecure, "Allow addresses that other machines can reach");
  add.Group("Computing");
  o.device = "auto";
  add.Text("--device", o.device, "cuda, cuda:N, cpu, or auto: a GPU where there is one", "DEVICE");
  add.Text("--weights", o.weights, "How weights are held: auto, bf16, f32 or int8", "FORMAT");
  add.Text("--state-dtype", o.state_dtype,
           "What SSM states are held in: f32, or bf16 (half the size)", "TYPE");
  add.Text("--isa", o.isa, "CPU instructions: portable, avx2, avx512; default: the best", "ISA");
  add.Flag("--deterministic", o.deterministic,
           "On CUDA: bits that don't depend on other streams, as always on the CPU");
  add.Number("--threads", o.threads, "CPU threads; 0 = one per core");
  DeclareScheduling(add, o);
  DeclareStates(add, o);
  add.Group("Running");
  add.Number("--drain-seconds", o.drain_seconds, "For streams to finish after SIGTERM");
  add.Number("--io-threads", o.io_threads, "Threads that wait for the store");
  add.Text("--log-level", o.log_level, "debug, info, warn, error or off", "LEVEL");
}

std::vector<std::string> ServeFlags::Resolve(CLI::App* app) {
  ConfigFile file;
  if (!config_file.empty()) file = ApplyConfigFile(config_file, app);
  if (!file.problems.empty()) return file.problems;
  if (options.model_dir.empty()) options.model_dir = BundledModelDir();
  if (options.store_dir.empty()) options.store_dir = DefaultStoreDir();
  const absl::Status status = server::ValidateServerOptions(options);
  if (status.ok()) return {};
  return {file.Locate(std::string(status.message()))};
}

}  // namespace vivarium::cli
