#include "server/states_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/export_call.h"
#include "server/import_call.h"
#include "server/paging.h"
#include "server/unary.h"
#include "server/validate.h"

namespace vivarium::server {
namespace {

// Errors of the store about one state, with their reason.
absl::Status NameState(const absl::Status& status, const std::string& state_id) {
  if (absl::IsNotFound(status)) {
    return WithReason(status, "STATE_NOT_FOUND", {{"state_id", state_id}});
  }
  if (absl::IsFailedPrecondition(status)) {
    return WithReason(status, "STATE_IN_USE", {{"state_id", state_id}});
  }
  if (absl::IsDataLoss(status)) {
    return WithReason(status, "STATE_DAMAGED", {{"state_id", state_id}});
  }
  return status;
}

absl::Status GetOne(const Parts& parts, const v1::GetStateRequest& request, v1::State* response) {
  absl::Status status = CheckStateId("id", request.id());
  if (!status.ok()) return status;
  auto manifest = parts.store->GetManifest(DefaultTenant(), request.id());
  if (!manifest.ok()) return NameState(manifest.status(), request.id());
  ToProto(*manifest, response);
  if (!request.with_transcript()) return absl::OkStatus();
  auto whole = parts.store->Ancestry(DefaultTenant(), request.id(), 1);
  if (!whole.ok()) return NameState(whole.status(), request.id());
  TranscriptWriter(parts.tokenizer).Append(whole->front(), response);
  return absl::OkStatus();
}

absl::Status ListPage(const Parts& parts, const v1::ListStatesRequest& request,
                      v1::ListStatesResponse* response) {
  auto page_size = ParsePageSize(request.page_size());
  if (!page_size.ok()) return page_size.status();
  statestore::StateFilter filter;
  filter.labels = ParseLabels(request.labels());
  filter.session = request.session();
  filter.parent_id = request.parent_id();
  filter.include_dropped = request.show_dropped();
  absl::Status status = CheckLabels(filter.labels);
  if (status.ok() && !filter.session.empty()) status = CheckName("session", filter.session);
  if (status.ok() && !filter.parent_id.empty()) {
    status = CheckStateId("parent_id", filter.parent_id);
  }
  if (!status.ok()) return status;
  auto page = parts.store->ListStates(DefaultTenant(), filter, *page_size, request.page_token());
  if (!page.ok()) return page.status();
  for (const statestore::StateManifest& manifest : page->items) {
    ToProto(manifest, response->add_states());
  }
  response->set_next_page_token(page->next_page_token);
  return absl::OkStatus();
}

absl::StatusOr<statestore::StateUpdate> ParseUpdate(const v1::UpdateStateRequest& request) {
  statestore::StateUpdate update;
  if (request.update_mask().paths().empty()) {
    return InvalidField("update_mask", "empty", "paths of labels, pinned, expire_time");
  }
  for (const std::string& path : request.update_mask().paths()) {
    if (path == "labels") {
      update.labels = ParseLabels(request.state().labels());
      absl::Status status = CheckLabels(*update.labels);
      if (!status.ok()) return status;
    } else if (path == "pinned") {
      update.pinned = request.state().pinned();
    } else if (path == "expire_time") {
      update.expires = absl::InfiniteFuture();
      if (!request.state().has_expire_time()) continue;
      auto time = ParseTime("state.expire_time", request.state().expire_time());
      if (!time.ok()) return time.status();
      update.expires = *time;
    } else {
      return InvalidField("update_mask", path, "paths of labels, pinned, expire_time");
    }
  }
  return update;
}

absl::Status UpdateOne(const Parts& parts, const v1::UpdateStateRequest& request,
                       v1::State* response) {
  const std::string& id = request.state().id();
  absl::Status status = CheckStateId("state.id", id);
  if (!status.ok()) return status;
  auto update = ParseUpdate(request);
  if (!update.ok()) return update.status();
  auto manifest = parts.store->UpdateState(DefaultTenant(), id, *update);
  if (!manifest.ok()) return NameState(manifest.status(), id);
  ToProto(*manifest, response);
  return absl::OkStatus();
}

absl::Status VerifyOne(const Parts& parts, const v1::VerifyStateRequest& request,
                       v1::VerifyStateResponse* response) {
  absl::Status status = CheckStateId("id", request.id());
  if (!status.ok()) return status;
  status = parts.store->VerifyState(DefaultTenant(), request.id());
  if (!status.ok()) return NameState(status, request.id());
  auto manifest = parts.store->GetManifest(DefaultTenant(), request.id());
  if (!manifest.ok()) return NameState(manifest.status(), request.id());
  response->set_verified_bytes(manifest->stored_bytes);
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* StatesService::GetState(grpc::CallbackServerContext* context,
                                                  const v1::GetStateRequest* request,
                                                  v1::State* response) {
  return RunUnary(parts_, "GetState", context,
                  [=, this] { return GetOne(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* StatesService::ListStates(grpc::CallbackServerContext* context,
                                                    const v1::ListStatesRequest* request,
                                                    v1::ListStatesResponse* response) {
  return RunUnary(parts_, "ListStates", context,
                  [=, this] { return ListPage(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* StatesService::DeleteState(grpc::CallbackServerContext* context,
                                                     const v1::DeleteStateRequest* request,
                                                     google::protobuf::Empty*) {
  return RunUnary(parts_, "DeleteState", context, [=, this] {
    absl::Status status = CheckStateId("id", request->id());
    if (!status.ok()) return status;
    return NameState(parts_->store->DeleteState(DefaultTenant(), request->id()), request->id());
  });
}

grpc::ServerUnaryReactor* StatesService::UpdateState(grpc::CallbackServerContext* context,
                                                     const v1::UpdateStateRequest* request,
                                                     v1::State* response) {
  return RunUnary(parts_, "UpdateState", context,
                  [=, this] { return UpdateOne(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* StatesService::VerifyState(grpc::CallbackServerContext* context,
                                                     const v1::VerifyStateRequest* request,
                                                     v1::VerifyStateResponse* response) {
  return RunUnary(parts_, "VerifyState", context,
                  [=, this] { return VerifyOne(*parts_, *request, response); });
}

grpc::ServerWriteReactor<v1::ExportStateResponse>* StatesService::ExportState(
    grpc::CallbackServerContext* context, const v1::ExportStateRequest* request) {
  return ExportCall::Start(parts_, &num_transfers_, context, *request);
}

grpc::ServerReadReactor<v1::ImportStateRequest>* StatesService::ImportState(
    grpc::CallbackServerContext* context, v1::State* response) {
  return ImportCall::Start(parts_, &num_transfers_, context, response);
}

}  // namespace vivarium::server
