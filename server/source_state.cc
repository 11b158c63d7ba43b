#include "server/source_state.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/errors.h"
#include "server/metrics.h"
#include "statestore/store_rules.h"

namespace vivarium::server {
namespace {

// Under which the engine knows a state.
std::string HotName(const std::string& tenant, const std::string& state_id) {
  return absl::StrCat(tenant, "/", state_id);
}

std::unique_ptr<engine::StateSnapshot> SnapshotOf(statestore::StateManifest manifest,
                                                  engine::StateBuffer slot) {
  auto source = std::make_unique<engine::StateSnapshot>();
  source->identity = std::move(manifest.identity);
  source->layout = std::move(manifest.layout);
  source->slot = std::move(slot);
  source->position = manifest.position;
  source->pending_token = manifest.pending_token;
  source->sampling = std::move(manifest.sampling);
  source->recent_tokens = std::move(manifest.recent_tokens);
  source->text_tail = std::move(manifest.text_tail);
  source->transcript = std::move(manifest.transcript);
  return source;
}

StateTier TierOf(statestore::LoadTier tier) {
  return tier == statestore::LoadTier::kHost ? StateTier::kHost : StateTier::kDisk;
}

}  // namespace

const char* ExplainTier(StateTier tier) {
  switch (tier) {
    case StateTier::kDevice:
      return "; the state was still on the device";
    case StateTier::kHost:
      return "; the state was in host memory";
    case StateTier::kDisk:
      return "; the state was read from disk";
    case StateTier::kNone:
      break;
  }
  return "";
}

absl::Status CheckIdentity(const engine::ModelIdentity& served, const engine::ModelIdentity& source,
                           const std::string& state_id) {
  const auto mismatch = [&](std::string_view reason, const char* what, const std::string& have,
                            const std::string& want) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "state ", state_id, " belongs to ", what, " ", have.empty() ? "(none)" : have,
            "; the server has ", want.empty() ? "(none)" : want)),
        reason, {{"state_id", state_id}, {"state", have}, {"server", want}});
  };
  if (source.fingerprint != served.fingerprint) {
    return mismatch("MODEL_MISMATCH", "model", source.fingerprint, served.fingerprint);
  }
  if (source.tokenizer_hash != served.tokenizer_hash) {
    return mismatch("TOKENIZER_MISMATCH", "tokenizer", source.tokenizer_hash,
                    served.tokenizer_hash);
  }
  return absl::OkStatus();
}

absl::StatusOr<SourceState> LoadSource(const Parts& parts, const std::string& state_id) {
  const absl::Time begin = absl::Now();
  SourceState source;
  source.hot = parts.engine->LeaseHot(HotName(DefaultTenant(), state_id));
  source.tier = StateTier::kDevice;
  absl::StatusOr<statestore::SavedState> saved;
  if (source.hot) {  // leased first: from now on it stays
    auto manifest = parts.store->GetManifest(DefaultTenant(), state_id);
    if (manifest.ok()) {
      saved = statestore::SavedState{*std::move(manifest), {}};
    } else {
      saved = manifest.status();
    }
  } else {
    saved = parts.store->Load(DefaultTenant(), state_id);
    if (saved.ok()) source.tier = TierOf(saved->tier);
  }
  if (absl::IsNotFound(saved.status())) {
    return WithReason(saved.status(), "STATE_NOT_FOUND", {{"state_id", state_id}});
  }
  if (!saved.ok()) return saved.status();
  statestore::StateManifest& manifest = saved->manifest;
  absl::Status status = CheckIdentity(parts.model.identity, manifest.identity, state_id);
  if (!status.ok()) return status;
  source.lineage = {state_id,
                    manifest.session,
                    statestore::WithLoss(manifest.loss, manifest.inherited_loss),
                    manifest.is_snapshot,
                    manifest.position,
                    std::move(manifest.snapshots),
                    manifest.prefix_hash};
  const uint64_t slot_bytes = manifest.layout.slot_bytes;
  source.snapshot = SnapshotOf(std::move(manifest), std::move(saved->slot));
  parts.metrics->ObserveTier(source.tier, absl::Now() - begin, slot_bytes);
  return source;
}

void KeepHot(const Parts& parts, engine::HotId hot_id, const std::string& state_id,
             statestore::StateCodec codec) {
  if (hot_id == 0 || state_id.empty() || codec == statestore::StateCodec::kBF16) return;
  parts.engine->NameHot(hot_id, HotName(DefaultTenant(), state_id));
}

}  // namespace vivarium::server
