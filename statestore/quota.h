// Quotas: what a tenant may have in the store, by the stored bytes and the count of its states that
// have bytes; and reservations: quota that is kept for work that will save, so that it is refused
// before it begins rather than at its end.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace vivarium::statestore {

class QuotaLedger;

struct Quota {
  uint64_t num_states = 0;  // with bytes; 0 = no limit
  uint64_t num_bytes = 0;   // of their chunks, as stored; 0 = no limit

  bool operator==(const Quota&) const = default;
};

struct QuotaOptions {
  Quota each_tenant;                       // of every tenant that is not in by_tenant
  std::map<std::string, Quota> by_tenant;  // instead
};

// States count from their commit until their bytes are dropped: by deletion at once, by expiry when
// the sweep drops them. What is used may be above a limit that was lowered: then nothing is saved
// until enough is gone.
struct QuotaUsage {
  Quota limit;
  Quota used;
  Quota reserved;             // by reservations and by commits that are being written
  uint64_t num_refusals = 0;  // since the store was opened
};

// What a RESOURCE_EXHAUSTED of a quota says, for programs; its message says it to people.
struct QuotaExceeded {
  std::string tenant;
  std::string what;  // "states" or "bytes"
  uint64_t used = 0;
  uint64_t reserved = 0;
  uint64_t asked = 0;
  uint64_t limit = 0;
};
absl::Status QuotaExceededError(const QuotaExceeded& exceeded);
// Nothing for any other status.
std::optional<QuotaExceeded> QuotaExceededOf(const absl::Status& status);

// Quota that is kept for its holder: nobody else's commit can take it. A commit that names it
// (Commit::reservation) takes from it first, and only beyond it from what is free. Move-only; what
// is left goes back when it is destroyed or assigned to. Used by one thread at a time; must not
// outlive its store.
class StateReservation {
 public:
  StateReservation() = default;  // of nothing
  StateReservation(StateReservation&& other) noexcept;
  StateReservation& operator=(StateReservation&& other) noexcept;
  ~StateReservation() { Release(); }

  void Release();
  // At most so much of it, as a reservation of its own.
  StateReservation Split(const Quota& wanted);
  // Adds what `other` has, which is of the same store and tenant, or of nothing.
  void Merge(StateReservation other);

  // "" = of nothing.
  const std::string& tenant() const { return tenant_; }
  const Quota& kept() const { return kept_; }

 private:
  friend class QuotaLedger;
  StateReservation(QuotaLedger* ledger, std::string tenant, const Quota& kept)
      : ledger_(ledger), tenant_(std::move(tenant)), kept_(kept) {}

  QuotaLedger* ledger_ = nullptr;
  std::string tenant_;
  Quota kept_;
};

}  // namespace vivarium::statestore
