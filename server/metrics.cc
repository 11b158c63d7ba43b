#include "server/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <exception>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "server/parts.h"
#include "server/process_memory.h"
#include "server/server_options.h"

namespace vivarium::server {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Seconds: from a token of a small model on a fast device to a long prompt on a slow one.
const prometheus::Histogram::BucketBoundaries& LatencyBuckets() {
  static const auto* const kBuckets = new prometheus::Histogram::BucketBoundaries{
      0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
  return *kBuckets;
}

// Seconds: from a state that is on the device already to a large one on a slow disk.
const prometheus::Histogram::BucketBoundaries& TierBuckets() {
  static const auto* const kBuckets = new prometheus::Histogram::BucketBoundaries{
      0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
      0.01,    0.025,    0.05,    0.1,    0.25,    0.5,    1,     2.5};
  return *kBuckets;
}

MetricFamily Single(const char* name, const char* help, MetricType type, double value) {
  MetricFamily family{name, help, type, {}};
  family.metric.emplace_back();
  family.metric[0].counter.value = value;
  family.metric[0].gauge.value = value;
  return family;
}

// Reads the engine when it is scraped.
class EngineCollector final : public prometheus::Collectable {
 public:
  void SetEngine(const engine::Engine* engine) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    engine_ = engine;
  }

  std::vector<MetricFamily> Collect() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<MetricFamily> families;
    const auto counter = [&](const char* name, const char* help, uint64_t value) {
      families.push_back(Single(name, help, MetricType::Counter, static_cast<double>(value)));
    };
    const auto gauge = [&](const char* name, const char* help, uint64_t value) {
      families.push_back(Single(name, help, MetricType::Gauge, static_cast<double>(value)));
    };
    gauge("vivarium_resident_bytes", "Resident memory of the process.", ResidentBytes());
    absl::MutexLock lock(&mutex_);
    if (engine_ == nullptr) return families;
    const engine::EngineStats stats = engine_->Stats();
    counter("vivarium_engine_steps_total", "Steps of the engine.", stats.steps);
    counter("vivarium_engine_consumed_tokens_total", "Tokens that went through the model.",
            stats.consumed_tokens);
    counter("vivarium_engine_prefill_tokens_total", "Of these, given by clients.",
            stats.prefill_tokens);
    counter("vivarium_engine_decode_tokens_total", "Of these, sampled before.",
            stats.decode_tokens);
    counter("vivarium_engine_swaps_out_total", "States moved to host memory.", stats.swaps_out);
    counter("vivarium_engine_swaps_in_total", "States moved back to a slot.", stats.swaps_in);
    counter("vivarium_engine_rejected_streams_total", "Streams refused: the queue was full.",
            stats.rejected_streams);
    gauge("vivarium_streams_queued", "Streams waiting.",
          static_cast<uint64_t>(stats.queued_streams));
    gauge("vivarium_queued_tokens", "Prompt tokens of streams that have not started.",
          static_cast<uint64_t>(stats.queued_tokens));
    gauge("vivarium_streams_live", "Streams running or swapped out.",
          static_cast<uint64_t>(stats.live_streams));
    gauge("vivarium_slots_used", "State slots in use.", static_cast<uint64_t>(stats.used_slots));
    gauge("vivarium_slots", "State slots.", static_cast<uint64_t>(stats.max_slots));
    gauge("vivarium_hot_slots", "State slots that keep the state of an ended stream.",
          static_cast<uint64_t>(stats.hot_slots));
    counter("vivarium_hot_evictions_total", "Of these, states that left because of others.",
            stats.hot_evictions);
    counter("vivarium_hot_spills_total", "Of these, with a stream about to go on from them.",
            stats.hot_spills);
    gauge("vivarium_weight_bytes", "Device memory of the weights, as held.", stats.weight_bytes);
    gauge("vivarium_activation_bytes", "Device memory of activations and logits.",
          stats.activation_bytes);
    gauge("vivarium_pool_bytes", "Device memory of the state slots, all of them.",
          stats.pool_bytes);
    gauge("vivarium_device_free_bytes", "Memory of the device that is free; 0 = not known.",
          stats.device_free_bytes);
    gauge("vivarium_device_total_bytes", "Memory of the device.", stats.device_total_bytes);
    gauge("vivarium_host_swap_bytes", "Host memory of swapped-out states.", stats.host_swap_bytes);
    return families;
  }

 private:
  mutable absl::Mutex mutex_;
  const engine::Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// What is used of the only tenant's quota, read when it is scraped.
class QuotaCollector final : public prometheus::Collectable {
 public:
  void SetSource(std::function<statestore::QuotaUsage()> source) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    source_ = std::move(source);
  }

  std::vector<MetricFamily> Collect() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<MetricFamily> families;
    absl::MutexLock lock(&mutex_);
    if (!source_) return families;
    const statestore::QuotaUsage usage = source_();
    const auto add = [&](const char* name, const char* help, MetricType type, uint64_t value) {
      families.push_back(Single(name, help, type, static_cast<double>(value)));
      families.back().metric[0].label = {{"tenant", DefaultTenant()}};
    };
    const auto gauge = [&](const char* name, const char* help, uint64_t value) {
      add(name, help, MetricType::Gauge, value);
    };
    gauge("vivarium_quota_states", "States that may be stored; 0 = no limit.",
          usage.limit.num_states);
    gauge("vivarium_quota_bytes", "Bytes that they may take; 0 = no limit.", usage.limit.num_bytes);
    gauge("vivarium_quota_used_states", "States stored.", usage.used.num_states);
    gauge("vivarium_quota_used_bytes", "Bytes that they take.", usage.used.num_bytes);
    gauge("vivarium_quota_reserved_states", "States that running calls may still store.",
          usage.reserved.num_states);
    gauge("vivarium_quota_reserved_bytes", "Bytes that these may take.", usage.reserved.num_bytes);
    add("vivarium_quota_refusals_total", "Refused for want of quota: calls, snapshots, commits.",
        MetricType::Counter, usage.num_refusals);
    return families;
  }

 private:
  mutable absl::Mutex mutex_;
  std::function<statestore::QuotaUsage()> source_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

struct Metrics::Families {
  // Shared with the exposer's threads, which hold it weakly.
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<EngineCollector> engine = std::make_shared<EngineCollector>();
  std::shared_ptr<QuotaCollector> quota = std::make_shared<QuotaCollector>();

  prometheus::Family<prometheus::Counter>& Counter(const char* name, const char* help) {
    return BuildCounter().Name(name).Help(help).Register(*registry);
  }
  prometheus::Histogram& Latency(const char* name, const char* help) {
    return BuildHistogram().Name(name).Help(help).Register(*registry).Add({}, LatencyBuckets());
  }
  prometheus::Gauge& Gauge(const char* name, const char* help) {
    return BuildGauge().Name(name).Help(help).Register(*registry).Add({});
  }

  prometheus::Family<prometheus::Counter>& rpcs =
      Counter("vivarium_rpcs_total", "Finished calls by method and status code.");
  prometheus::Family<prometheus::Counter>& refusals =
      Counter("vivarium_refused_calls_total", "RESOURCE_EXHAUSTED calls by method and reason.");
  prometheus::Family<prometheus::Counter>& reuse = Counter(
      "vivarium_generate_sources_total", "Streams by source: restored, or why nothing was reused.");
  prometheus::Family<prometheus::Counter>& prefix_lookups =
      Counter("vivarium_prefix_lookups_total", "Prompts from nothing, by what a look-up found.");
  prometheus::Histogram& prefix_lookup_time = Latency(
      "vivarium_prefix_lookup_seconds", "Looking for a stored prefix, loading the state included.");
  prometheus::Counter& prefix_tokens =
      Counter("vivarium_prefix_restored_tokens_total",
              "Tokens not computed again thanks to prefix reuse, of started streams.")
          .Add({});
  prometheus::Family<prometheus::Counter>& prefix_states = Counter(
      "vivarium_prefix_states_total", "States at branches of prompts, by what became of them.");
  prometheus::Counter& restored_tokens =
      Counter("vivarium_restored_tokens_total", "Tokens not computed again, of ended streams.")
          .Add({});
  prometheus::Counter& computed_tokens =
      Counter("vivarium_computed_prompt_tokens_total", "Prompt tokens computed, of ended streams.")
          .Add({});
  prometheus::Counter& output_tokens =
      Counter("vivarium_output_tokens_total", "Tokens generated, of ended streams.").Add({});
  prometheus::Counter& skipped_snapshots =
      Counter("vivarium_skipped_snapshots_total",
              "Snapshots every N tokens not taken, since one of the stream was still being stored.")
          .Add({});
  prometheus::Histogram& queue_time =
      Latency("vivarium_queue_seconds", "From submission to the first step.");
  prometheus::Histogram& first_token =
      Latency("vivarium_time_to_first_token_seconds", "From a call's arrival to its first token.");
  prometheus::Histogram& token_time =
      Latency("vivarium_time_per_output_token_seconds", "Mean time between tokens of a stream.");
  prometheus::Histogram& commit_time =
      Latency("vivarium_store_commit_seconds", "Durable commits of the store.");
  prometheus::Histogram& load_time = Latency("vivarium_store_load_seconds", "Loads of states.");
  prometheus::Counter& committed_bytes =
      Counter("vivarium_store_committed_bytes_total", "State bytes stored.").Add({});
  prometheus::Counter& loaded_bytes =
      Counter("vivarium_store_loaded_bytes_total", "State bytes loaded and verified.").Add({});
  prometheus::Family<prometheus::Counter>& store_errors =
      Counter("vivarium_store_errors_total", "Failed operations of the store.");
  prometheus::Counter& expired_states =
      Counter("vivarium_store_expired_states_total", "States dropped because they expired.")
          .Add({});
  prometheus::Counter& orphan_chunks =
      Counter("vivarium_store_orphan_chunks_total", "Chunks of unfinished commits, dropped.")
          .Add({});
  prometheus::Gauge& cache_bytes =
      Gauge("vivarium_state_cache_bytes", "Host memory of states kept there.");
  prometheus::Gauge& cache_states =
      Gauge("vivarium_state_cache_states", "States kept in host memory.");
  prometheus::Gauge& cache_limit_bytes =
      Gauge("vivarium_state_cache_limit_bytes", "Host memory for states, at most.");
  prometheus::Counter& cache_evictions =
      Counter("vivarium_state_cache_evictions_total", "States that left host memory for others.")
          .Add({});
  prometheus::Gauge& states = Gauge("vivarium_states", "States with their bytes.");
  prometheus::Gauge& sessions = Gauge("vivarium_sessions", "Sessions.");
  prometheus::Gauge& live_bytes = Gauge("vivarium_store_live_bytes", "Bytes of these states.");
  prometheus::Gauge& disk_bytes = Gauge("vivarium_store_disk_bytes", "Bytes of the store on disk.");
  prometheus::Counter& scrubbed_states =
      Counter("vivarium_store_scrubbed_states_total", "States read again to find damage.").Add({});
  prometheus::Counter& scrubbed_bytes =
      Counter("vivarium_store_scrubbed_bytes_total", "Their bytes.").Add({});
  prometheus::Counter& damaged_states =
      Counter("vivarium_store_damaged_states_total",
              "Damaged ones, and keys and files that don't agree, once each pass.")
          .Add({});
  prometheus::Gauge& read_only =
      Gauge("vivarium_store_read_only", "1 while nothing can be saved: a fault, or a full disk.");
  prometheus::Gauge& draining = Gauge("vivarium_draining", "1 while the server drains.");

  struct Tier {
    prometheus::Counter& hits;
    prometheus::Counter& misses;
    prometheus::Counter& bytes;
    prometheus::Histogram& seconds;
  };
  Tier MakeTier(StateTier tier) {
    const prometheus::Labels labels = {{"tier", std::string(StateTierName(tier))}};
    return {
        Counter("vivarium_state_tier_hits_total", "Source states found there.").Add(labels),
        Counter("vivarium_state_tier_misses_total", "Source states not found there.").Add(labels),
        Counter("vivarium_state_tier_bytes_total", "Bytes of the states found.").Add(labels),
        BuildHistogram()
            .Name("vivarium_state_tier_seconds")
            .Help("Until the engine can have a source state found there.")
            .Register(*registry)
            .Add(labels, TierBuckets())};
  }
  std::array<Tier, kNumTiers - 1> tiers = {MakeTier(StateTier::kDevice), MakeTier(StateTier::kHost),
                                           MakeTier(StateTier::kDisk)};

  std::unique_ptr<prometheus::Exposer> exposer;  // goes first
};

Metrics::Metrics() : families_(std::make_unique<Families>()) {
  // There from the start, so that alerts on errors have something to compare the first one with.
  families_->store_errors.Add({{"operation", "background"}, {"code", "FAULT"}});
}
Metrics::~Metrics() = default;

void Metrics::CountRpc(std::string_view method, const absl::Status& status) {
  families_->rpcs
      .Add({{"method", std::string(method)}, {"code", absl::StatusCodeToString(status.code())}})
      .Increment();
}

void Metrics::CountRefusal(std::string_view method, std::string_view reason) {
  families_->refusals.Add({{"method", std::string(method)}, {"reason", std::string(reason)}})
      .Increment();
}

void Metrics::CountReuse(std::string_view reason) {
  families_->reuse.Add({{"source", std::string(reason)}}).Increment();
}

void Metrics::CountPrefixLookup(std::string_view result) {
  families_->prefix_lookups.Add({{"result", std::string(result)}}).Increment();
}

void Metrics::ObservePrefixLookup(absl::Duration duration) {
  families_->prefix_lookup_time.Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::CountPrefixState(std::string_view what) {
  families_->prefix_states.Add({{"what", std::string(what)}}).Increment();
}

void Metrics::CountPrefixTokens(uint64_t restored) {
  families_->prefix_tokens.Increment(static_cast<double>(restored));
}

void Metrics::CountTokens(uint64_t restored, uint64_t computed, uint64_t output) {
  families_->restored_tokens.Increment(static_cast<double>(restored));
  families_->computed_tokens.Increment(static_cast<double>(computed));
  families_->output_tokens.Increment(static_cast<double>(output));
}

void Metrics::CountSkippedSnapshot() { families_->skipped_snapshots.Increment(); }

void Metrics::ObserveQueueTime(absl::Duration duration) {
  families_->queue_time.Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::ObserveFirstToken(absl::Duration duration) {
  families_->first_token.Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::ObserveTokenTime(absl::Duration duration) {
  families_->token_time.Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::ObserveCommit(absl::Duration latency, uint64_t bytes, const absl::Status& status) {
  families_->commit_time.Observe(absl::ToDoubleSeconds(latency));
  if (status.ok()) {
    families_->committed_bytes.Increment(static_cast<double>(bytes));
  } else {
    families_->store_errors
        .Add({{"operation", "commit"}, {"code", absl::StatusCodeToString(status.code())}})
        .Increment();
  }
}

void Metrics::ObserveLoad(absl::Duration latency, uint64_t bytes, const absl::Status& status) {
  families_->load_time.Observe(absl::ToDoubleSeconds(latency));
  if (status.ok()) {
    families_->loaded_bytes.Increment(static_cast<double>(bytes));
  } else {
    families_->store_errors
        .Add({{"operation", "load"}, {"code", absl::StatusCodeToString(status.code())}})
        .Increment();
  }
}

void Metrics::ObserveTier(StateTier tier, absl::Duration latency, uint64_t bytes) {
  if (tier == StateTier::kNone) return;
  const size_t found = static_cast<size_t>(tier) - 1;
  for (size_t nearer = 0; nearer < found; ++nearer) families_->tiers[nearer].misses.Increment();
  Families::Tier& metrics = families_->tiers[found];
  metrics.hits.Increment();
  metrics.bytes.Increment(static_cast<double>(bytes));
  metrics.seconds.Observe(absl::ToDoubleSeconds(latency));
}

AllTierCounts Metrics::Tiers() const {
  AllTierCounts counts;
  for (size_t i = 0; i < families_->tiers.size(); ++i) {
    const Families::Tier& metrics = families_->tiers[i];
    counts[i + 1] = {static_cast<uint64_t>(metrics.hits.Value()),
                     static_cast<uint64_t>(metrics.misses.Value()),
                     static_cast<uint64_t>(metrics.bytes.Value())};
  }
  return counts;
}

void Metrics::CountSweep(uint64_t num_expired, uint64_t num_orphan_chunks) {
  families_->expired_states.Increment(static_cast<double>(num_expired));
  families_->orphan_chunks.Increment(static_cast<double>(num_orphan_chunks));
}

void Metrics::CountStoreFault() {
  families_->store_errors.Add({{"operation", "background"}, {"code", "FAULT"}}).Increment();
}

void Metrics::CountScrub(uint64_t num_states, uint64_t num_bytes, uint64_t num_damaged) {
  families_->scrubbed_states.Increment(static_cast<double>(num_states));
  families_->scrubbed_bytes.Increment(static_cast<double>(num_bytes));
  families_->damaged_states.Increment(static_cast<double>(num_damaged));
}

void Metrics::SetStore(const statestore::StoreStats& stats) {
  families_->states.Set(static_cast<double>(stats.num_states));
  families_->sessions.Set(static_cast<double>(stats.num_sessions));
  families_->live_bytes.Set(static_cast<double>(stats.live_bytes));
  families_->disk_bytes.Set(static_cast<double>(stats.disk_bytes));
  families_->read_only.Set(stats.is_read_only ? 1 : 0);
  families_->cache_bytes.Set(static_cast<double>(stats.cache_bytes));
  families_->cache_states.Set(static_cast<double>(stats.cache_states));
  families_->cache_limit_bytes.Set(static_cast<double>(stats.cache_limit_bytes));
  families_->cache_evictions.Increment(static_cast<double>(stats.cache_evictions) -
                                       families_->cache_evictions.Value());
}

void Metrics::SetDraining(bool is_draining) { families_->draining.Set(is_draining ? 1 : 0); }

void Metrics::SetEngine(const engine::Engine* engine) { families_->engine->SetEngine(engine); }

void Metrics::SetQuotaSource(std::function<statestore::QuotaUsage()> source) {
  families_->quota->SetSource(std::move(source));
}

absl::StatusOr<std::string> Metrics::Listen(const std::string& address) {
  HostPort parsed;
  absl::Status status = ParseHostPort("metrics-listen", address, &parsed);
  if (!status.ok()) return status;
  // The HTTP library knows numbers only.
  const std::string host = parsed.host == "localhost" ? "127.0.0.1" : parsed.host;
  const bool is_v6 = host.find(':') != std::string::npos;
  const std::string bracketed = is_v6 ? absl::StrCat("[", host, "]") : host;
  try {
    families_->exposer = std::make_unique<prometheus::Exposer>(
        absl::StrCat(bracketed, ":", parsed.port), /*num_threads=*/2);
  } catch (const std::exception& e) {
    return absl::UnavailableError(
        absl::StrCat("--metrics-listen ", address, " can't be bound: ", e.what()));
  }
  families_->exposer->RegisterCollectable(families_->registry);
  families_->exposer->RegisterCollectable(families_->engine);
  families_->exposer->RegisterCollectable(families_->quota);
  const std::vector<int> ports = families_->exposer->GetListeningPorts();
  return absl::StrCat(bracketed, ":", ports.empty() ? parsed.port : ports[0]);
}

std::string Metrics::Text() const {
  std::vector<MetricFamily> all = families_->registry->Collect();
  for (MetricFamily& family : families_->engine->Collect()) all.push_back(std::move(family));
  for (MetricFamily& family : families_->quota->Collect()) all.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(all);
}

void StoreObserver::OnCommit(absl::Duration latency, uint64_t bytes, const absl::Status& status) {
  metrics_->ObserveCommit(latency, bytes, status);
}

void StoreObserver::OnLoad(absl::Duration latency, uint64_t bytes, statestore::LoadTier /*tier*/,
                           const absl::Status& status) {
  metrics_->ObserveLoad(latency, bytes, status);
}

void StoreObserver::OnFault(const absl::Status& status) {
  metrics_->CountStoreFault();
  if (on_fault_) on_fault_(status);
}

void StoreObserver::OnSweep(uint64_t num_expired, uint64_t num_orphan_chunks) {
  metrics_->CountSweep(num_expired, num_orphan_chunks);
}

}  // namespace vivarium::server
