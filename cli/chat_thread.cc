#include "cli/chat_thread.h"

#include "absl/strings/str_cat.h"

namespace vivarium::cli {

void ChatThread::StandAt(const v1::State& state) {
  state_id_ = state.id();
  position_ = state.position();
}

void ChatThread::StandAt(const v1::Session& session) {
  session_ = session.name();
  etag_ = session.etag();
  StandAt(session.head());
}

grpc::Status ChatThread::OpenSession(const std::string& name, const std::string& state_id) {
  session_ = name;
  v1::GetSessionRequest request;
  request.set_name(name);
  v1::Session session;
  grpc::Status status =
      client_->Do(client_->sessions(), &v1::Sessions::Stub::GetSession, request, &session);
  if (status.ok()) StandAt(session);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) status = grpc::Status::OK;
  if (!status.ok() || state_id.empty()) return status;
  is_state_given_ = true;
  return OpenState(state_id);
}

grpc::Status ChatThread::OpenState(const std::string& state_id) {
  v1::GetStateRequest request;
  request.set_id(state_id);
  v1::State state;
  grpc::Status status =
      client_->Do(client_->states(), &v1::States::Stub::GetState, request, &state);
  if (status.ok()) StandAt(state);
  return status;
}

grpc::Status ChatThread::Say(const std::string& line,
                             const std::function<void(std::string_view)>& on_text,
                             GenerationResult* result) {
  v1::GenerateRequest request;
  sampling_.Fill(&request);
  request.mutable_save()->set_at_end(true);
  request.set_session(session_);
  request.set_expected_etag(etag_);
  if (is_fresh_) {
    request.set_fresh(true);
  } else if (!state_id_.empty() && (session_.empty() || is_state_given_)) {
    request.set_state_id(state_id_);
  }
  if (has_chat_format_) {
    const auto add = [&request](const char* role, const std::string& content) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role(role);
      message->set_content(content);
    };
    if (!system_.empty()) add("system", system_);
    add("user", line);
  } else {
    request.set_text(system_ + line);
  }
  grpc::Status status = RunGeneration(*client_, request, on_text, result);
  if (!status.ok()) {
    Refresh();
    return status;
  }
  system_.clear();
  is_fresh_ = is_state_given_ = false;
  etag_ = result->finished.session_etag();
  if (result->finished.has_state()) StandAt(result->finished.state());
  return status;
}

void ChatThread::Refresh() {
  if (session_.empty() || is_fresh_ || is_state_given_) return;
  v1::GetSessionRequest request;
  request.set_name(session_);
  v1::Session session;
  if (client_->Do(client_->sessions(), &v1::Sessions::Stub::GetSession, request, &session).ok()) {
    StandAt(session);
  }
}

grpc::Status ChatThread::Save(const std::string& name) {
  v1::GetStateRequest get;
  get.set_id(state_id_);
  v1::UpdateStateRequest update;
  grpc::Status status =
      client_->Do(client_->states(), &v1::States::Stub::GetState, get, update.mutable_state());
  if (!status.ok()) return status;
  update.mutable_state()->set_pinned(true);
  update.mutable_update_mask()->add_paths("pinned");
  if (!name.empty()) {
    (*update.mutable_state()->mutable_labels())["name"] = name;
    update.mutable_update_mask()->add_paths("labels");
  }
  v1::State updated;
  return client_->Do(client_->states(), &v1::States::Stub::UpdateState, update, &updated);
}

grpc::Status ChatThread::Fork(const std::string& name) {
  v1::CreateSessionRequest request;
  request.set_name(name);
  request.set_state_id(state_id_);
  v1::Session session;
  grpc::Status status =
      client_->Do(client_->sessions(), &v1::Sessions::Stub::CreateSession, request, &session);
  if (status.ok()) {
    StandAt(session);
    is_fresh_ = is_state_given_ = false;
  }
  return status;
}

grpc::Status ChatThread::Rewind(uint32_t num_answers) {
  if (session_.empty()) return RewindStates(num_answers);
  v1::RewindSessionRequest request;
  request.set_name(session_);
  request.set_steps(num_answers);
  request.set_expected_etag(etag_);
  v1::Session session;
  grpc::Status status =
      client_->Do(client_->sessions(), &v1::Sessions::Stub::RewindSession, request, &session);
  if (status.ok()) StandAt(session);
  return status;
}

grpc::Status ChatThread::RewindStates(uint32_t num_answers) {
  v1::GetHistoryResponse history;
  grpc::Status status = History(&history);
  if (!status.ok()) return status;
  std::vector<int> answers;  // without snapshots on the way
  for (int i = 0; i < history.states_size(); ++i) {
    if (!history.states(i).snapshot()) answers.push_back(i);
  }
  if (num_answers >= answers.size()) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            absl::StrCat("there are only ", answers.size(), " states; /new starts from nothing")};
  }
  const v1::State& target = history.states(answers[answers.size() - 1 - num_answers]);
  if (target.dropped()) {
    return {grpc::StatusCode::NOT_FOUND, absl::StrCat("state ", target.id(), " has been dropped")};
  }
  StandAt(target);
  return status;
}

grpc::Status ChatThread::History(v1::GetHistoryResponse* history) {
  v1::GetHistoryRequest request;
  request.set_state_id(state_id_);
  return client_->Do(client_->sessions(), &v1::Sessions::Stub::GetHistory, request, history);
}

void ChatThread::StartAfresh() {
  is_fresh_ = true;
  is_state_given_ = false;
  state_id_.clear();
  position_ = 0;
}

}  // namespace vivarium::cli
