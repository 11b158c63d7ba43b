// QuotaLedger: what every tenant uses of its quota and what is reserved of it, for both stores.
// In memory: a store tells it what is there when it opens, and every change that it has made.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "statestore/quota.h"

namespace vivarium::statestore {

// Thread-safe; never waits. Must outlive its reservations.
class QuotaLedger {
 public:
  explicit QuotaLedger(QuotaOptions options) : options_(std::move(options)) {}

  // RESOURCE_EXHAUSTED (QuotaExceededError) where used, reserved and wanted together are beyond a
  // limit. Nothing is wanted of what `wanted` has as 0.
  absl::StatusOr<StateReservation> Reserve(const std::string& tenant, const Quota& wanted)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // What one commit may use while it is being written.
  struct Taken {
    StateReservation from_source;
    StateReservation from_free;
  };
  // From `source` (null: there is none) as far as that goes, the rest from what is free. An error
  // leaves `source` as it was.
  absl::StatusOr<Taken> Take(const std::string& tenant, const Quota& wanted,
                             StateReservation* source) ABSL_LOCKS_EXCLUDED(mutex_);
  // The commit is there: `used` of it is used from now on, the rest is free.
  void Settle(Taken taken, const Quota& used) ABSL_LOCKS_EXCLUDED(mutex_);
  // The commit failed.
  static void Return(Taken taken, StateReservation* source);
  // What is there changed: at opening, and by dropping.
  void Add(const std::string& tenant, int64_t num_states, int64_t num_bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  QuotaUsage Usage(const std::string& tenant) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class StateReservation;

  struct Account {
    Quota used;
    Quota reserved;
    uint64_t num_refusals = 0;
  };

  const Quota& LimitOf(const std::string& tenant) const;
  void GiveBack(const std::string& tenant, const Quota& kept) ABSL_LOCKS_EXCLUDED(mutex_);

  const QuotaOptions options_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Account> accounts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace vivarium::statestore
