#include "server/server_service.h"

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/metrics.h"
#include "server/process_memory.h"
#include "server/unary.h"
#include "server/validate.h"

namespace vivarium::server {
namespace {

void FillModel(const Parts& parts, v1::Model* out) {
  const ModelFacts& model = parts.model;
  out->set_name(model.name);
  out->set_architecture(model.config.architecture);
  out->set_fingerprint(model.identity.fingerprint);
  out->set_tokenizer_hash(model.identity.tokenizer_hash);
  out->set_numerics_id(model.identity.numerics_id);
  out->set_num_parameters(static_cast<int64_t>(model.num_parameters));
  out->set_vocab_size(model.config.vocab_size);
  out->set_d_model(model.config.d_model);
  out->set_d_inner(model.config.d_inner);
  out->set_d_state(model.config.d_state);
  out->set_d_conv(model.config.d_conv);
  out->set_dt_rank(model.config.dt_rank);
  out->set_num_layers(static_cast<int64_t>(model.config.layers.size()));
  out->set_weight_bytes(model.weight_bytes);
  out->set_state_bytes(model.layout.slot_bytes);
  out->set_has_chat_format(parts.chat_format.has_value());
  if (model.config.bos_token_id) out->set_bos_token_id(*model.config.bos_token_id);
  for (const int32_t id : model.config.eos_token_ids) out->add_eos_token_ids(id);
  out->set_max_prompt_tokens(parts.options.max_prompt_tokens);
  out->set_max_tokens(parts.options.max_tokens);
  out->set_max_slots(parts.engine->options().max_slots);
  out->set_max_live_streams(parts.options.max_live_streams);
  out->set_max_queued_streams(parts.options.max_queued_streams);
}

absl::Status BeginDrain(const Parts& parts, const v1::DrainRequest& request) {
  absl::Duration time = absl::Seconds(parts.options.drain_seconds);
  if (request.has_deadline()) {
    auto parsed = ParseDuration("deadline", request.deadline(), absl::ZeroDuration(), kMaxDrain);
    if (!parsed.ok()) return parsed.status();
    time = *parsed;
  }
  parts.drain(absl::Now() + time);
  return absl::OkStatus();
}

absl::Status CheckBackupName(std::string_view field, const std::string& name) {
  absl::Status status = CheckName(field, name);
  if (status.ok() && (name == "." || name == "..")) {
    status = InvalidField(field, name, "a directory's name");
  }
  return status;
}

absl::Status AddToSet(Parts& parts, const std::string& directory, v1::BackupResponse* response) {
  auto info = parts.store->AddBackup(directory, [&](uint64_t copied_bytes) {
    parts.backup_copied_bytes = static_cast<int64_t>(copied_bytes);
  });
  if (absl::IsAborted(info.status())) return WithReason(info.status(), "BACKUP_RUNNING");
  parts.backup_copied_bytes = -1;
  if (!info.ok()) return info.status();
  response->set_directory(directory);
  response->set_backup_id(info->id);
  response->set_num_bytes(info->num_bytes);
  response->set_new_bytes(info->new_bytes);
  return absl::OkStatus();
}

absl::Status MakeBackup(Parts& parts, const v1::BackupRequest& request,
                        v1::BackupResponse* response) {
  const bool is_set = !request.set().empty();
  if (is_set && !request.name().empty()) {
    return InvalidField("set", request.set(), "it or a name, not both");
  }
  absl::Status status =
      is_set ? CheckBackupName("set", request.set()) : CheckBackupName("name", request.name());
  if (!status.ok()) return status;
  if (parts.options.backups_dir.empty()) {
    return WithReason(absl::FailedPreconditionError(
                          "the server was started without a directory for backups (--backups)"),
                      "NO_BACKUPS");
  }
  const std::filesystem::path parent(parts.options.backups_dir);
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("the directory for backups can't be made: ", error.message()));
  }
  if (is_set) return AddToSet(parts, (parent / request.set()).string(), response);
  const std::string directory = (parent / request.name()).string();
  status = parts.store->Backup(directory);
  if (status.ok()) response->set_directory(directory);
  return status;
}

void FillQuota(const Parts& parts, v1::QuotaUsage* out) {
  const statestore::QuotaUsage usage = parts.store->GetQuota(DefaultTenant());
  out->set_tenant(DefaultTenant());
  out->set_max_states(usage.limit.num_states);
  out->set_max_bytes(usage.limit.num_bytes);
  out->set_used_states(usage.used.num_states);
  out->set_used_bytes(usage.used.num_bytes);
  out->set_reserved_states(usage.reserved.num_states);
  out->set_reserved_bytes(usage.reserved.num_bytes);
  out->set_refusals(usage.num_refusals);
}

void FillTiers(const Parts& parts, const engine::EngineStats& engine,
               const statestore::StoreStats& store, v1::Stats* out) {
  out->set_hot_slots(engine.hot_slots);
  out->set_hot_evictions(engine.hot_evictions);
  out->set_hot_spills(engine.hot_spills);
  const AllTierCounts tiers = parts.metrics->Tiers();
  for (const StateTier tier : {StateTier::kDevice, StateTier::kHost, StateTier::kDisk}) {
    const TierCounts& counts = tiers[static_cast<size_t>(tier)];
    v1::TierStats* stats = out->add_tiers();
    stats->set_tier(ToProto(tier));
    stats->set_hits(counts.hits);
    stats->set_misses(counts.misses);
    stats->set_bytes(counts.bytes);
  }
  out->set_state_cache_bytes(store.cache_bytes);
  out->set_state_cache_states(store.cache_states);
  out->set_state_cache_limit_bytes(store.cache_limit_bytes);
  out->set_state_cache_evictions(store.cache_evictions);
}

absl::Status FillStats(const Parts& parts, v1::Stats* out) {
  out->set_version(VIVARIUM_VERSION);
  *out->mutable_uptime() = ToProto(absl::Now() - parts.started);
  out->set_device(parts.model.device);
  out->set_isa(parts.model.isa);
  out->set_num_threads(parts.model.num_threads);
  out->set_rss_bytes(ResidentBytes());

  const engine::EngineStats engine = parts.engine->Stats();
  out->set_steps(engine.steps);
  out->set_consumed_tokens(engine.consumed_tokens);
  out->set_prefill_tokens(engine.prefill_tokens);
  out->set_decode_tokens(engine.decode_tokens);
  out->set_output_tokens(engine.output_tokens);
  out->set_restored_tokens(engine.restored_tokens);
  out->set_swaps_out(engine.swaps_out);
  out->set_swaps_in(engine.swaps_in);
  out->set_finished_streams(engine.finished_streams);
  out->set_cancelled_streams(engine.cancelled_streams);
  out->set_rejected_streams(engine.rejected_streams);
  out->set_queued_streams(engine.queued_streams);
  out->set_live_streams(engine.live_streams);
  out->set_used_slots(engine.used_slots);
  out->set_max_slots(engine.max_slots);
  out->set_slot_bytes(engine.slot_bytes);
  out->set_pool_bytes(engine.pool_bytes);
  out->set_weight_bytes(engine.weight_bytes);
  out->set_activation_bytes(engine.activation_bytes);
  out->set_device_free_bytes(engine.device_free_bytes);
  out->set_device_total_bytes(engine.device_total_bytes);

  auto store = parts.store->Stats();
  if (!store.ok()) return store.status();
  out->set_num_states(store->num_states);
  out->set_num_sessions(store->num_sessions);
  out->set_store_live_bytes(store->live_bytes);
  out->set_store_disk_bytes(store->disk_bytes);
  out->set_store_is_read_only(store->is_read_only);
  FillQuota(parts, out->add_quotas());
  const int64_t copied_bytes = parts.backup_copied_bytes;
  if (copied_bytes >= 0) out->set_backup_copied_bytes(static_cast<uint64_t>(copied_bytes));
  FillTiers(parts, engine, *store, out);
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* ModelsService::GetModel(grpc::CallbackServerContext* context,
                                                  const v1::GetModelRequest*, v1::Model* response) {
  return RunUnary(parts_, "GetModel", context, [=, this] {
    FillModel(*parts_, response);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest* request,
                                              google::protobuf::Empty*) {
  return RunUnary(parts_, "Drain", context, [=, this] { return BeginDrain(*parts_, *request); });
}

grpc::ServerUnaryReactor* AdminService::Backup(grpc::CallbackServerContext* context,
                                               const v1::BackupRequest* request,
                                               v1::BackupResponse* response) {
  return RunUnary(parts_, "Backup", context,
                  [=, this] { return MakeBackup(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* AdminService::GetStats(grpc::CallbackServerContext* context,
                                                 const v1::GetStatsRequest*, v1::Stats* response) {
  return RunUnary(parts_, "GetStats", context, [=, this] { return FillStats(*parts_, response); });
}

}  // namespace vivarium::server
