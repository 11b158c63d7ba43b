#include "server/sessions_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/paging.h"
#include "server/rewind.h"
#include "server/unary.h"
#include "server/validate.h"

namespace vivarium::server {
namespace {

absl::Status NotThere(const std::string& session) {
  return WithReason(absl::NotFoundError(absl::StrCat("session ", session, " does not exist")),
                    "SESSION_NOT_FOUND", {{"session", session}});
}

absl::StatusOr<statestore::Session> Find(const Parts& parts, const std::string& name) {
  auto session = parts.store->GetSession(DefaultTenant(), name);
  if (absl::IsNotFound(session.status())) return NotThere(name);
  return session;
}

absl::Status Fill(const Parts& parts, const statestore::Session& session, v1::Session* out) {
  auto head = parts.store->GetManifest(DefaultTenant(), session.head);
  if (!head.ok()) return head.status();
  ToProto(session, *head, out);
  return absl::OkStatus();
}

absl::Status Create(const Parts& parts, const v1::CreateSessionRequest& request,
                    v1::Session* response) {
  absl::Status status = CheckName("name", request.name());
  if (status.ok()) status = CheckStateId("state_id", request.state_id());
  if (!status.ok()) return status;
  auto lease = parts.sessions->Lease(DefaultTenant(), request.name(), "");
  if (!lease.ok()) return lease.status();
  statestore::Commit commit;
  commit.tenant = DefaultTenant();
  commit.head_move = statestore::Commit::HeadMove{request.name(), request.state_id(), ""};
  status = parts.store->Apply(commit);
  if (absl::IsAlreadyExists(status)) {
    return WithReason(status, "SESSION_EXISTS", {{"session", request.name()}});
  }
  if (absl::IsNotFound(status)) {
    return WithReason(status, "STATE_NOT_FOUND", {{"state_id", request.state_id()}});
  }
  if (!status.ok()) return status;
  auto session = Find(parts, request.name());
  return session.ok() ? Fill(parts, *session, response) : session.status();
}

absl::Status Get(const Parts& parts, const v1::GetSessionRequest& request, v1::Session* response) {
  absl::Status status = CheckName("name", request.name());
  if (!status.ok()) return status;
  auto session = Find(parts, request.name());
  return session.ok() ? Fill(parts, *session, response) : session.status();
}

absl::Status ListPage(const Parts& parts, const v1::ListSessionsRequest& request,
                      v1::ListSessionsResponse* response) {
  auto page_size = ParsePageSize(request.page_size());
  if (!page_size.ok()) return page_size.status();
  auto page = parts.store->ListSessions(DefaultTenant(), *page_size, request.page_token());
  if (!page.ok()) return page.status();
  for (const statestore::Session& session : page->items) {
    v1::Session filled;
    absl::Status status = Fill(parts, session, &filled);
    if (absl::IsNotFound(status)) continue;  // it moved on, or went away, between the two looks
    if (!status.ok()) return status;
    *response->add_sessions() = std::move(filled);
  }
  response->set_next_page_token(page->next_page_token);
  return absl::OkStatus();
}

absl::StatusOr<std::string> HistoryEnd(const Parts& parts, const v1::GetHistoryRequest& request) {
  absl::Status status;
  if (request.of_case() == v1::GetHistoryRequest::kStateId) {
    status = CheckStateId("state_id", request.state_id());
    if (!status.ok()) return status;
    return request.state_id();
  }
  if (request.of_case() != v1::GetHistoryRequest::kSession) {
    return InvalidField("of", "missing", "a session or a state_id");
  }
  status = CheckName("session", request.session());
  if (!status.ok()) return status;
  auto session = Find(parts, request.session());
  if (!session.ok()) return session.status();
  return session->head;
}

absl::Status History(const Parts& parts, const v1::GetHistoryRequest& request,
                     v1::GetHistoryResponse* response) {
  constexpr size_t kTokenBytes = 8;  // about, with its text
  auto end = HistoryEnd(parts, request);
  if (!end.ok()) return end.status();
  auto states = parts.store->Ancestry(DefaultTenant(), *end, kMaxHistoryStates + 1);
  if (absl::IsNotFound(states.status())) {
    return WithReason(states.status(), "STATE_NOT_FOUND", {{"state_id", *end}});
  }
  if (!states.ok()) return states.status();
  size_t num_states = 0;
  for (size_t bytes = 0; num_states < std::min(states->size(), kMaxHistoryStates); ++num_states) {
    bytes += kTokenBytes * (*states)[num_states].transcript.size();
    if (num_states > 0 && bytes > kMaxHistoryBytes) break;
  }
  response->set_is_truncated(num_states < states->size());
  TranscriptWriter writer(parts.tokenizer);
  for (size_t i = num_states; i-- > 0;) {
    v1::State* state = response->add_states();
    ToProto((*states)[i], state);
    writer.Append((*states)[i], state);
  }
  return absl::OkStatus();
}

absl::StatusOr<RewindTarget> ParseTarget(const v1::RewindSessionRequest& request) {
  RewindTarget target;
  switch (request.to_case()) {
    case v1::RewindSessionRequest::kStateId:
      if (absl::Status status = CheckStateId("state_id", request.state_id()); !status.ok()) {
        return status;
      }
      target.state_id = request.state_id();
      return target;
    case v1::RewindSessionRequest::kPosition:
      target.position = request.position();
      return target;
    case v1::RewindSessionRequest::kSteps:
      if (request.steps() == 0) return InvalidField("steps", "0", "at least 1");
      target.steps = request.steps();
      return target;
    case v1::RewindSessionRequest::TO_NOT_SET:
      break;
  }
  return InvalidField("to", "missing", "a state_id, a position or a number of steps");
}

absl::Status Rewind(const Parts& parts, const v1::RewindSessionRequest& request,
                    v1::Session* response) {
  absl::Status status = CheckName("name", request.name());
  if (!status.ok()) return status;
  auto target = ParseTarget(request);
  if (!target.ok()) return target.status();
  auto lease = parts.sessions->Lease(DefaultTenant(), request.name(), request.expected_etag());
  if (!lease.ok()) return lease.status();
  if (!lease->current) return NotThere(request.name());
  auto state = FindRewindTarget(*parts.store, *lease->current, *target);
  if (!state.ok()) return state.status();
  statestore::Commit commit;
  commit.tenant = DefaultTenant();
  commit.head_move = statestore::Commit::HeadMove{request.name(), state->id, lease->etag()};
  status = parts.store->Apply(commit);
  if (!status.ok()) return status;
  auto session = Find(parts, request.name());
  return session.ok() ? Fill(parts, *session, response) : session.status();
}

absl::Status Delete(const Parts& parts, const v1::DeleteSessionRequest& request) {
  absl::Status status = CheckName("name", request.name());
  if (!status.ok()) return status;
  auto lease = parts.sessions->Lease(DefaultTenant(), request.name(), request.expected_etag());
  if (!lease.ok()) return lease.status();
  if (!lease->current) return NotThere(request.name());
  return parts.store->DeleteSession(DefaultTenant(), request.name(), lease->etag());
}

}  // namespace

grpc::ServerUnaryReactor* SessionsService::CreateSession(grpc::CallbackServerContext* context,
                                                         const v1::CreateSessionRequest* request,
                                                         v1::Session* response) {
  return RunUnary(parts_, "CreateSession", context,
                  [=, this] { return Create(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* SessionsService::GetSession(grpc::CallbackServerContext* context,
                                                      const v1::GetSessionRequest* request,
                                                      v1::Session* response) {
  return RunUnary(parts_, "GetSession", context,
                  [=, this] { return Get(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* SessionsService::ListSessions(grpc::CallbackServerContext* context,
                                                        const v1::ListSessionsRequest* request,
                                                        v1::ListSessionsResponse* response) {
  return RunUnary(parts_, "ListSessions", context,
                  [=, this] { return ListPage(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* SessionsService::GetHistory(grpc::CallbackServerContext* context,
                                                      const v1::GetHistoryRequest* request,
                                                      v1::GetHistoryResponse* response) {
  return RunUnary(parts_, "GetHistory", context,
                  [=, this] { return History(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* SessionsService::RewindSession(grpc::CallbackServerContext* context,
                                                         const v1::RewindSessionRequest* request,
                                                         v1::Session* response) {
  return RunUnary(parts_, "RewindSession", context,
                  [=, this] { return Rewind(*parts_, *request, response); });
}

grpc::ServerUnaryReactor* SessionsService::DeleteSession(grpc::CallbackServerContext* context,
                                                         const v1::DeleteSessionRequest* request,
                                                         google::protobuf::Empty*) {
  return RunUnary(parts_, "DeleteSession", context,
                  [=, this] { return Delete(*parts_, *request); });
}

}  // namespace vivarium::server
