#include "server/save_admission.h"

#include "server/errors.h"
#include "server/prefix_reuse.h"

namespace vivarium::server {

uint64_t NumCertainStates(const SavePlan& save) {
  return (save.at_prompt_end ? 1u : 0u) + (save.saves_anything() ? 1u : 0u);
}

absl::StatusOr<statestore::StateReservation> AdmitSaves(const Parts& parts, uint64_t num_states,
                                                        statestore::StateCodec codec) {
  if (num_states == 0) return statestore::StateReservation();
  const engine::StateLayout& layout = parts.model.layout;
  absl::Status status = parts.store->CheckWritable(num_states * layout.slot_bytes);
  if (absl::IsResourceExhausted(status)) return WithReason(status, "DISK_FULL");
  if (absl::IsUnavailable(status)) return WithReason(status, "STORE_FAULT");
  if (!status.ok()) return status;
  auto reservation = parts.store->Reserve(DefaultTenant(), num_states, layout, codec);
  // What the server stored by itself costs no client its save.
  if (statestore::QuotaExceededOf(reservation.status()) && parts.prefixes != nullptr &&
      parts.prefixes->GiveBack(DefaultTenant())) {
    reservation = parts.store->Reserve(DefaultTenant(), num_states, layout, codec);
  }
  return reservation;
}

}  // namespace vivarium::server
