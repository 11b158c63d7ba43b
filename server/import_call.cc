#include "server/import_call.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/call_log.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/generate_plan.h"
#include "server/save_admission.h"
#include "server/states_service.h"
#include "server/validate.h"

namespace vivarium::server {
namespace {

statestore::ImportOptions ImportLimits(const Parts& parts) {
  statestore::ImportOptions options;
  options.expected_layout = &parts.model.layout;
  // A state in f32 where the server holds bf16 is up to twice as large.
  options.max_slot_bytes = 2 * parts.model.layout.slot_bytes;
  return options;
}

}  // namespace

ImportCall::ImportCall(Parts* parts, std::atomic<int>* num_transfers,
                       grpc::CallbackServerContext* context, v1::State* response)
    : parts_(parts),
      num_transfers_(num_transfers),
      context_(context),
      response_(response),
      arrived_(absl::Now()),
      importer_(ImportLimits(*parts)) {
  num_transfers_->fetch_add(1);
}

ImportCall::~ImportCall() { num_transfers_->fetch_sub(1); }

grpc::ServerReadReactor<v1::ImportStateRequest>* ImportCall::Start(
    Parts* parts, std::atomic<int>* num_transfers, grpc::CallbackServerContext* context,
    v1::State* response) {
  auto* const call = new ImportCall(parts, num_transfers, context, response);
  if (*num_transfers > kMaxTransfers) {
    call->End(BusyError("exports and imports", kMaxTransfers));
  } else {
    call->StartRead(&call->message_);
  }
  return call;
}

void ImportCall::OnReadDone(bool ok) {
  if (!ok && context_->IsCancelled()) return End(absl::CancelledError("the call was cancelled"));
  if (ok) {
    parts_->executor->Continue([this] { TakeMessage(); });
  } else {
    parts_->executor->Continue([this] { End(Store()); });
  }
}

void ImportCall::TakeMessage() {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    status = TakePart();
  }
  if (!status.ok()) return End(status);
  StartRead(&message_);
}

absl::Status ImportCall::TakePart() {
  if (!has_metadata_) {
    if (!message_.has_metadata()) {
      return InvalidField("metadata", "missing", "it in the first message");
    }
    has_metadata_ = true;
    metadata_ = message_.metadata();
    absl::Status status = CheckLabels(ParseLabels(metadata_.labels()));
    if (status.ok() && !metadata_.session().empty()) {
      status = CheckName("metadata.session", metadata_.session());
    }
    if (!status.ok()) return status;
    auto quota = AdmitSaves(*parts_, 1, statestore::StateCodec::kRaw);
    if (quota.ok()) quota_ = *std::move(quota);
    return quota.status();
  }
  if (message_.part_case() != v1::ImportStateRequest::kData) {
    return InvalidField("part", message_.has_metadata() ? "metadata" : "missing",
                        "data in every message but the first");
  }
  if (message_.data().size() > kMaxImportPieceBytes) {
    return InvalidField("data", absl::StrCat(message_.data().size(), " bytes"),
                        absl::StrCat("at most ", kMaxImportPieceBytes));
  }
  return importer_.Push(message_.data());
}

// What the importer can't know: that the state is one of the served model.
absl::Status ImportCall::CheckSaved(const statestore::SavedState& saved) const {
  const statestore::StateManifest& manifest = saved.manifest;
  absl::Status status = CheckIdentity(parts_->model.identity, manifest.identity, manifest.id);
  const int64_t vocab_size = parts_->model.config.vocab_size;
  if (status.ok())
    status = CheckTokenIds("pending_token", {&manifest.pending_token, 1}, vocab_size);
  for (const engine::TranscriptToken& token : manifest.recent_tokens) {
    if (status.ok()) status = CheckTokenIds("recent_tokens", {&token.id, 1}, vocab_size);
  }
  for (const engine::TranscriptToken& token : manifest.transcript) {
    if (status.ok()) status = CheckTokenIds("transcript", {&token.id, 1}, vocab_size);
  }
  if (status.ok()) status = engine::ValidateSamplingParams(manifest.sampling, vocab_size);
  return status;
}

absl::Status ImportCall::Store() {
  if (absl::Status status = parts_->CheckServing(); !status.ok()) return status;
  v1::ImportMetadata metadata;
  absl::StatusOr<statestore::SavedState> saved;
  statestore::StateReservation quota;
  {
    absl::MutexLock lock(&mutex_);
    if (!has_metadata_) return InvalidField("metadata", "missing", "it in the first message");
    metadata = std::move(metadata_);
    saved = importer_.Finish();
    quota = std::move(quota_);
  }
  if (!saved.ok()) return saved.status();
  absl::Status status = CheckSaved(*saved);
  if (!status.ok()) return status;
  statestore::StateManifest& manifest = saved->manifest;
  manifest.id = parts_->ids->NextStateId();
  manifest.tenant = DefaultTenant();
  manifest.parent_id.clear();  // its thread stayed where it came from
  manifest.snapshots.clear();
  manifest.is_snapshot = false;
  manifest.prefix_hash.reset();
  manifest.session = metadata.session();
  manifest.labels = ParseLabels(metadata.labels());
  manifest.pinned = false;
  manifest.created = absl::Now();
  manifest.expires = manifest.created + LimitsOf(*parts_).default_ttl;
  const std::string id = manifest.id;
  statestore::Commit commit;
  commit.tenant = DefaultTenant();
  // Its bytes may be anybody's.
  commit.states.push_back({std::move(manifest), &saved->slot, /*is_reusable=*/false});
  commit.reservation = &quota;
  LeasedSession session;
  if (!metadata.session().empty()) {
    auto lease = parts_->sessions->Lease(DefaultTenant(), metadata.session(), "");
    if (!lease.ok()) return lease.status();
    session = *std::move(lease);
    commit.head_move = statestore::Commit::HeadMove{metadata.session(), id, ""};
  }
  status = parts_->store->Apply(commit);
  if (absl::IsAlreadyExists(status)) {
    return WithReason(status, "SESSION_EXISTS", {{"session", metadata.session()}});
  }
  if (!status.ok()) return status;
  auto stored = parts_->store->GetManifest(DefaultTenant(), id);
  if (!stored.ok()) return stored.status();
  ToProto(*stored, response_);
  return absl::OkStatus();
}

void ImportCall::End(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);  // before the client hears of it
    quota_.Release();
  }
  ReportCall(*parts_, {"ImportState", status, absl::Now() - arrived_, ""});
  Finish(ToGrpcStatus(status, context_));
}

}  // namespace vivarium::server
