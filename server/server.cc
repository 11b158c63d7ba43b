#include "server/server.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/model/model.h"
#include "engine/runtime/slot_plan.h"
#include "kernels/backend.h"
#include "server/admission.h"
#include "server/grpc_port.h"
#include "server/metrics.h"
#include "server/parts.h"
#include "server/prefix_reuse.h"
#include "statestore/memory_store.h"
#include "statestore/rocksdb_store.h"

namespace vivarium::server {
namespace {

constexpr size_t kMaxWaitingCalls = 1024;                   // for the executor
constexpr absl::Duration kReadersGrace = absl::Seconds(5);  // to read the end, on a drain
constexpr absl::Duration kCloseGrace = absl::Milliseconds(500);
constexpr absl::Duration kScrubPause = absl::Minutes(1);  // between passes
constexpr absl::Duration kStoreStatsPeriod = absl::Seconds(15);

std::shared_ptr<spdlog::logger> MakeLog(const std::string& level) {
  auto log = std::make_shared<spdlog::logger>("vivarium",
                                              std::make_shared<spdlog::sinks::stderr_sink_mt>());
  log->set_level(spdlog::level::from_str(level));
  log->set_formatter(std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%eZ %l %v",
                                                                 spdlog::pattern_time_type::utc));
  log->flush_on(spdlog::level::warn);
  return log;
}

engine::WeightFormat ParseWeights(const std::string& name) {
  if (name == "bf16") return engine::WeightFormat::kBF16;
  if (name == "f32") return engine::WeightFormat::kF32;
  if (name == "int8") return engine::WeightFormat::kInt8;
  return engine::WeightFormat::kAuto;
}

engine::EngineOptions MakeEngineOptions(const ServerOptions& options) {
  engine::EngineOptions out;
  out.max_slots = options.max_slots;
  out.max_live_streams = options.max_live_streams;
  out.max_queued_streams = options.max_queued_streams;
  out.max_queued_tokens = options.max_queued_tokens;
  out.max_num_batched_tokens = options.max_num_batched_tokens;
  out.prefill_chunk_tokens = options.prefill_chunk;
  out.prefill_tokens_beside_decode = options.prefill_beside_decode;
  out.time_slice_tokens = options.time_slice_tokens;
  out.max_tokens_limit = static_cast<uint32_t>(options.max_tokens);
  out.max_prompt_tokens = static_cast<size_t>(options.max_prompt_tokens);
  return out;
}

class RunningServer final : public Server, private engine::EngineEvents {
 public:
  explicit RunningServer(const ServerOptions& options)
      : log_(MakeLog(options.log_level)),
        observer_(&metrics_,
                  [this](const absl::Status& status) {
                    log_->error("event=store_fault message=\"{}\"", status.ToString());
                  }),
        ids_(absl::Now),
        admission_(AdmissionLimits(options)),
        executor_(std::make_unique<Executor>(options.io_threads, kMaxWaitingCalls)) {
    parts_.options = options;
    parts_.started = absl::Now();
  }
  ~RunningServer() override;

  absl::Status Start();

  std::string address() const override { return port_->address(); }
  std::string metrics_address() const override { return metrics_address_; }
  void Drain(absl::Time deadline) override ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitUntilDrained() override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status fault() override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return fault_;
  }

 private:
  // From the engine.
  void OnFault(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status MakeBackend();
  absl::Status LoadModel();
  absl::Status LoadText();
  absl::Status StartEngine();
  absl::Status OpenStore();
  absl::Status OpenPorts();
  void RunDrain(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitReaders();
  void RunSweeps() ABSL_LOCKS_EXCLUDED(mutex_);
  void RunScrubs() ABSL_LOCKS_EXCLUDED(mutex_);
  // True when the server stops before.
  bool StopsWithin(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mutex_);
  void UpdateStoreMetrics();

  // From what lives longest to what goes first.
  std::shared_ptr<spdlog::logger> log_;
  Metrics metrics_;
  StoreObserver observer_;
  statestore::UlidGenerator ids_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<engine::Model> model_;
  std::unique_ptr<engine::Tokenizer> tokenizer_;  // null: the model has none
  std::unique_ptr<statestore::StateStore> store_;
  std::unique_ptr<SessionManager> sessions_;
  Parts parts_;
  std::unique_ptr<PrefixReuse> prefixes_ = std::make_unique<PrefixReuse>(&parts_);
  // Work and writes that are left when the engine ends are still done: they come first.
  std::unique_ptr<WritePump> pump_ = std::make_unique<WritePump>();
  Admission admission_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<GrpcPort> port_;
  std::string metrics_address_;

  absl::Mutex mutex_;
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;  // port_ is there
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool drain_began_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_drained_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
  std::thread drain_thread_ ABSL_GUARDED_BY(mutex_);
  std::thread sweep_thread_;
  std::thread scrub_thread_;
};

absl::Status RunningServer::Start() {
  absl::Status status = LoadModel();
  if (status.ok()) status = LoadText();
  if (status.ok()) status = OpenStore();
  if (status.ok()) status = StartEngine();
  if (status.ok()) status = OpenPorts();
  if (!status.ok()) return status;
  sweep_thread_ = std::thread([this] { RunSweeps(); });
  if (parts_.options.scrub_bytes_per_second > 0) {
    scrub_thread_ = std::thread([this] { RunScrubs(); });
  }
  log_->info("event=listening address={} metrics={}", address(), metrics_address_);
  return absl::OkStatus();
}

// "auto": a GPU where there is one, else the CPU, with a line that says why.
absl::Status RunningServer::MakeBackend() {
  const ServerOptions& options = parts_.options;
  const kernels::BackendOptions backend_options = {
      .num_threads = options.threads, .isa = options.isa, .deterministic = options.deterministic};
  const bool is_auto = options.device == "auto";
  std::string error;
  backend_ = kernels::Backend::Create(is_auto ? "cuda:0" : options.device, backend_options, &error);
  if (backend_ == nullptr && is_auto) {
    log_->info("event=device_chosen device=cpu reason=\"{}\"", error);
    backend_ = kernels::Backend::Create("cpu", backend_options, &error);
  }
  if (backend_ == nullptr) return absl::InvalidArgumentError(error);
  if (const std::string notice = backend_->notice(); !notice.empty()) {
    log_->info("event=backend device={} notice=\"{}\"", backend_->device(), notice);
  }
  return absl::OkStatus();
}

absl::Status RunningServer::LoadModel() {
  const ServerOptions& options = parts_.options;
  auto checkpoint = engine::Checkpoint::Open(options.model_dir);
  if (!checkpoint.ok()) return checkpoint.status();
  auto config = engine::LoadModelConfig(options.model_dir, **checkpoint);
  if (!config.ok()) return config.status();
  auto defaults = engine::LoadGenerationDefaults(options.model_dir);
  if (!defaults.ok()) return defaults.status();
  if (absl::Status status = MakeBackend(); !status.ok()) return status;
  engine::ModelOptions model_options;
  model_options.weights = ParseWeights(options.weights);
  if (options.state_dtype == "bf16") model_options.state_dtype = kernels::DType::kBF16;
  model_options.max_batch_tokens = options.max_num_batched_tokens;
  model_options.max_logit_rows = options.max_num_batched_tokens;
  auto model = engine::Model::Load(**checkpoint, *config, backend_.get(), model_options);
  if (!model.ok()) return model.status();
  model_ = *std::move(model);

  ModelFacts& facts = parts_.model;
  std::filesystem::path path = std::filesystem::absolute(options.model_dir).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  facts.name = path.filename().string();
  facts.config = *std::move(config);
  facts.layout = model_->state_layout();
  facts.generation_defaults = *defaults;
  facts.identity.fingerprint = std::string(model_->fingerprint());
  facts.identity.numerics_id = std::string(model_->numerics_id());
  facts.weight_bytes = model_->weight_bytes();
  for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
    uint64_t count = 1;
    for (const int64_t dim : tensor.shape) count *= static_cast<uint64_t>(dim);
    facts.num_parameters += count;
  }
  facts.device = std::string(backend_->device());
  facts.isa = std::string(backend_->isa());
  facts.num_threads = backend_->num_threads();
  log_->info("event=model_loaded model={} parameters={} numerics={} threads={} state_bytes={}",
             facts.name, facts.num_parameters, facts.identity.numerics_id, facts.num_threads,
             facts.layout.slot_bytes);
  return absl::OkStatus();
}

absl::Status RunningServer::LoadText() {
  const ServerOptions& options = parts_.options;
  auto tokenizer = engine::Tokenizer::Load(options.model_dir);
  if (absl::IsNotFound(tokenizer.status())) {
    log_->warn("event=no_tokenizer model={} note=\"only token ids can be served\"",
               parts_.model.name);
    parts_.no_chat_reason = "the model has no tokenizer.json";
  } else if (!tokenizer.ok()) {
    return tokenizer.status();
  } else {
    tokenizer_ = *std::move(tokenizer);
    parts_.tokenizer = tokenizer_.get();
    parts_.model.identity.tokenizer_hash = tokenizer_->content_hash();
  }
  if (!options.chat_format.empty()) {
    auto format = engine::ChatFormat::ForName(options.chat_format);
    if (!format.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--chat-format: ", format.status().message()));
    }
    parts_.chat_format = *std::move(format);
  } else if (tokenizer_ != nullptr && tokenizer_->chat_template().empty()) {
    parts_.no_chat_reason =
        "the model has no chat_template; the server can be told a format with --chat-format";
  } else if (tokenizer_ != nullptr) {
    auto format = engine::ChatFormat::ForTemplate(tokenizer_->chat_template());
    if (format.ok()) {
      parts_.chat_format = *std::move(format);
    } else {
      parts_.no_chat_reason = std::string(format.status().message());
    }
  }
  return absl::OkStatus();
}

absl::Status RunningServer::OpenStore() {
  statestore::QuotaOptions quotas;
  quotas.each_tenant = {static_cast<uint64_t>(parts_.options.quota_states),
                        static_cast<uint64_t>(parts_.options.quota_bytes)};
  if (parts_.options.store_dir == kMemoryStore) {
    store_ = std::make_unique<statestore::MemoryStore>(absl::Now, &observer_,
                                                       statestore::MemoryOptions{.quotas = quotas});
    log_->warn("event=store_opened store=memory note=\"nothing survives the process\"");
  } else {
    statestore::RocksDbOptions options;
    options.quotas = quotas;
    options.state_cache_bytes = static_cast<uint64_t>(parts_.options.state_cache_bytes);
    options.disk_reserve_bytes = static_cast<uint64_t>(parts_.options.disk_reserve_bytes);
    auto store =
        statestore::OpenRocksDbStore(parts_.options.store_dir, options, absl::Now, &observer_);
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    log_->info("event=store_opened store={}", parts_.options.store_dir);
  }
  sessions_ = std::make_unique<SessionManager>(store_.get());
  metrics_.SetQuotaSource([this] { return store_->GetQuota(DefaultTenant()); });
  return absl::OkStatus();
}

absl::Status RunningServer::StartEngine() {
  engine::EngineOptions options = MakeEngineOptions(parts_.options);
  auto plan = engine::PlanSlots(*model_, options);
  if (!plan.ok()) {
    return absl::Status(plan.status().code(),
                        absl::StrCat(plan.status().message(), " (--max-slots)"));
  }
  log_->info("event=slots_planned max_slots={} auto={} memory=\"{}\"", plan->max_slots,
             options.max_slots == engine::kAutoSlots, plan->arithmetic);
  options.max_slots = plan->max_slots;  // as logged, though free memory may have changed
  auto engine =
      engine::Engine::Create(model_.get(), tokenizer_.get(), parts_.model.identity, options, this);
  if (!engine.ok()) return engine.status();
  engine_ = *std::move(engine);
  metrics_.SetEngine(engine_.get());
  return absl::OkStatus();
}

absl::Status RunningServer::OpenPorts() {
  parts_.engine = engine_.get();
  parts_.store = store_.get();
  parts_.sessions = sessions_.get();
  parts_.prefixes = prefixes_.get();
  parts_.ids = &ids_;
  parts_.admission = &admission_;
  parts_.executor = executor_.get();
  parts_.pump = pump_.get();
  parts_.metrics = &metrics_;
  parts_.log = log_.get();
  parts_.drain = [this](absl::Time deadline) { Drain(deadline); };
  if (!parts_.options.metrics_listen.empty()) {
    auto address = metrics_.Listen(parts_.options.metrics_listen);
    if (!address.ok()) return address.status();
    metrics_address_ = *std::move(address);
  }
  auto port = GrpcPort::Open(&parts_, parts_.options.listen);
  if (!port.ok()) return port.status();
  port_ = *std::move(port);
  UpdateStoreMetrics();
  absl::MutexLock lock(&mutex_);
  is_open_ = true;
  return absl::OkStatus();
}

void RunningServer::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  if (std::exchange(drain_began_, true)) return;
  drain_thread_ = std::thread([this, deadline] { RunDrain(deadline); });
}

void RunningServer::RunDrain(absl::Time deadline) {
  {
    absl::MutexLock lock(&mutex_);  // a call may ask for it before Start is through
    mutex_.Await(absl::Condition(&is_open_));
  }
  log_->info("event=drain_began seconds={:.1f}",
             absl::ToDoubleSeconds(std::max(absl::ZeroDuration(), deadline - absl::Now())));
  parts_.is_draining = true;
  metrics_.SetDraining(true);
  port_->StopServing();
  engine_->Drain(deadline);
  executor_->WaitUntilIdle();  // what the streams had to store is stored
  AwaitReaders();
  port_->Close(kCloseGrace);
  log_->info("event=drained");
  absl::MutexLock lock(&mutex_);
  is_drained_ = true;
}

// Every stream has ended already: what is left is to say so and to close.
void RunningServer::OnFault(const absl::Status& status) {
  log_->error("event=device_fault message=\"{}\"", std::string(status.message()));
  {
    absl::MutexLock lock(&mutex_);
    fault_ = status;
  }
  parts_.has_device_fault = true;
  parts_.is_draining = true;
  Drain(absl::Now());
}

// Streams that have ended but whose clients have not read the end.
void RunningServer::AwaitReaders() {
  const absl::Time until = absl::Now() + kReadersGrace;
  while (parts_.num_open_streams > 0 && absl::Now() < until) {
    absl::SleepFor(absl::Milliseconds(5));
  }
}

void RunningServer::WaitUntilDrained() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&is_drained_));
}

void RunningServer::UpdateStoreMetrics() {
  auto stats = store_->Stats();
  if (!stats.ok()) return;
  metrics_.SetStore(*stats);
  if (port_ != nullptr && !parts_.is_draining) port_->SetSaving(!stats->is_read_only);
}

void RunningServer::RunSweeps() {
  const absl::Duration period = absl::Seconds(parts_.options.sweep_seconds);
  absl::Time next_sweep = absl::Now() + period;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      const absl::Duration pause =
          std::min(kStoreStatsPeriod, std::max(absl::ZeroDuration(), next_sweep - absl::Now()));
      if (mutex_.AwaitWithTimeout(absl::Condition(&is_stopping_), pause)) return;
    }
    if (absl::Now() >= next_sweep) {
      absl::Status status = store_->Sweep(absl::Now());
      if (!status.ok()) log_->warn("event=sweep_failed message=\"{}\"", status.ToString());
      next_sweep = absl::Now() + period;
    }
    UpdateStoreMetrics();
  }
}

bool RunningServer::StopsWithin(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&is_stopping_), duration);
}

// Over and over: one pass over everything stored, a pause.
void RunningServer::RunScrubs() {
  statestore::ScrubReport last;
  statestore::ScrubOptions options;
  options.bytes_per_second = static_cast<uint64_t>(parts_.options.scrub_bytes_per_second);
  options.pause = [this](absl::Duration duration) { return !StopsWithin(duration); };
  options.on_progress = [&](const statestore::ScrubReport& so_far) {
    metrics_.CountScrub(
        so_far.num_states - last.num_states, so_far.num_bytes - last.num_bytes,
        so_far.num_damaged + so_far.num_inconsistent - last.num_damaged - last.num_inconsistent);
    last = so_far;
  };
  while (!StopsWithin(kScrubPause)) {
    last = statestore::ScrubReport();
    auto report = store_->Scrub(options);
    if (absl::IsCancelled(report.status())) return;
    if (!report.ok()) {
      log_->warn("event=scrub_failed message=\"{}\"", report.status().ToString());
    } else if (!report->is_sound()) {
      log_->error("event=scrub_found_damage states={} damaged={} inconsistent={}",
                  report->num_states, report->num_damaged, report->num_inconsistent);
    }
  }
}

RunningServer::~RunningServer() {
  if (port_ != nullptr) {
    Drain(absl::Now());
    WaitUntilDrained();
  }
  std::thread drain_thread;
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
    drain_thread = std::move(drain_thread_);
  }
  if (drain_thread.joinable()) drain_thread.join();
  if (sweep_thread_.joinable()) sweep_thread_.join();
  if (scrub_thread_.joinable()) scrub_thread_.join();
  metrics_.SetEngine(nullptr);
  metrics_.SetQuotaSource(nullptr);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  absl::Status status = ValidateServerOptions(options);
  if (!status.ok()) return status;
  auto server = std::make_unique<RunningServer>(options);
  status = server->Start();
  if (!status.ok()) return status;
  return server;
}

}  // namespace vivarium::server
