// Metrics: what Prometheus scrapes. Names and meanings: README.md, "Metrics".
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "server/state_tier.h"
#include "statestore/state_store.h"

namespace vivarium::server {

// Thread-safe; counting never blocks for long.
class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void CountRpc(std::string_view method, const absl::Status& status);
  void CountReuse(std::string_view reason);         // kReuse... of generate_plan.h
  void CountPrefixLookup(std::string_view result);  // kPrefix... of prefix_reuse.h
  void ObservePrefixLookup(absl::Duration duration);
  // Of states stored for prefix reuse: "stored", "duplicate", "skipped", "failed", "dropped".
  void CountPrefixState(std::string_view what);
  void CountPrefixTokens(uint64_t restored);
  void CountRefusal(std::string_view method, std::string_view reason);  // RESOURCE_EXHAUSTED
  void CountTokens(uint64_t restored, uint64_t computed, uint64_t output);
  void CountSkippedSnapshot();
  void ObserveQueueTime(absl::Duration duration);
  void ObserveFirstToken(absl::Duration duration);  // from the call's arrival
  void ObserveTokenTime(absl::Duration duration);   // mean of one stream
  void ObserveCommit(absl::Duration latency, uint64_t bytes, const absl::Status& status);
  void ObserveLoad(absl::Duration latency, uint64_t bytes, const absl::Status& status);
  // A source state came from `tier`; it took that long until the engine could have it. In nearer
  // tiers it was looked for in vain.
  void ObserveTier(StateTier tier, absl::Duration latency, uint64_t bytes);
  AllTierCounts Tiers() const;
  void CountSweep(uint64_t num_expired, uint64_t num_orphan_chunks);
  void CountStoreFault();
  void CountScrub(uint64_t num_states, uint64_t num_bytes, uint64_t num_damaged);
  void SetStore(const statestore::StoreStats& stats);
  void SetDraining(bool is_draining);

  // Asked at each scrape; nullptr stops that.
  void SetQuotaSource(std::function<statestore::QuotaUsage()> source);
  // The engine's counters and gauges are read at each scrape; nullptr stops that.
  void SetEngine(const engine::Engine* engine);

  // Serves /metrics at HOST:PORT until it is destroyed. Returns HOST:PORT as bound.
  absl::StatusOr<std::string> Listen(const std::string& address);
  // The text that /metrics answers.
  std::string Text() const;

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

// Hands the store's events to the metrics, and its faults to `on_fault` besides.
class StoreObserver final : public statestore::StoreEvents {
 public:
  StoreObserver(Metrics* metrics, std::function<void(const absl::Status&)> on_fault)
      : metrics_(metrics), on_fault_(std::move(on_fault)) {}

  void OnCommit(absl::Duration latency, uint64_t bytes, const absl::Status& status) override;
  void OnLoad(absl::Duration latency, uint64_t bytes, statestore::LoadTier tier,
              const absl::Status& status) override;
  void OnFault(const absl::Status& status) override;
  void OnSweep(uint64_t num_expired, uint64_t num_orphan_chunks) override;

 private:
  Metrics* const metrics_;
  const std::function<void(const absl::Status&)> on_fault_;
};

}  // namespace vivarium::server
