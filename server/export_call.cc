#include "server/export_call.h"

#include <utility>

#include "server/call_log.h"
#include "server/errors.h"
#include "server/states_service.h"
#include "server/validate.h"

namespace vivarium::server {

ExportCall::ExportCall(Parts* parts, std::atomic<int>* num_transfers,
                       grpc::CallbackServerContext* context, std::string state_id)
    : parts_(parts),
      num_transfers_(num_transfers),
      context_(context),
      state_id_(std::move(state_id)),
      arrived_(absl::Now()) {
  num_transfers_->fetch_add(1);
}

ExportCall::~ExportCall() { num_transfers_->fetch_sub(1); }

grpc::ServerWriteReactor<v1::ExportStateResponse>* ExportCall::Start(
    Parts* parts, std::atomic<int>* num_transfers, grpc::CallbackServerContext* context,
    const v1::ExportStateRequest& request) {
  auto* const call = new ExportCall(parts, num_transfers, context, request.id());
  absl::Status status = CheckStateId("id", request.id());
  if (status.ok() && *num_transfers > kMaxTransfers) {
    status = BusyError("exports and imports", kMaxTransfers);
  }
  if (status.ok() && !parts->executor->TryRun([call] { call->Load(); })) {
    status = BusyError("calls that wait to begin", parts->executor->max_new());
  }
  if (!status.ok()) call->End(status);
  return call;
}

void ExportCall::Load() {
  auto state = parts_->store->Load(DefaultTenant(), state_id_);
  if (absl::IsNotFound(state.status())) {
    return End(WithReason(state.status(), "STATE_NOT_FOUND", {{"state_id", state_id_}}));
  }
  if (!state.ok()) return End(state.status());
  exporter_.emplace(*std::move(state));
  WriteNext();
}

void ExportCall::WriteNext() {
  piece_.set_data(exporter_->NextPiece());
  if (piece_.data().empty()) {
    End(absl::OkStatus());
  } else {
    StartWrite(&piece_);
  }
}

void ExportCall::OnWriteDone(bool ok) {
  if (!ok) return End(absl::CancelledError("the call was cancelled"));
  WriteNext();
}

void ExportCall::End(const absl::Status& status) {
  ReportCall(*parts_, {"ExportState", status, absl::Now() - arrived_,
                       status.ok() ? " state=" + state_id_ : ""});
  Finish(ToGrpcStatus(status, context_));
}

}  // namespace vivarium::server
