// ChatThread: one conversation with a server: where it stands, and the calls that move it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cli/client.h"
#include "cli/flags.h"
#include "cli/generation_call.h"
#include "vivarium/v1/sessions.pb.h"

namespace vivarium::cli {

// With a session's name the thread is the session, shared with whoever else writes to it; without
// one it is a chain of states known here alone. Every answer saves a state. Not thread-safe.
class ChatThread {
 public:
  // `client` must outlive it. `has_chat_format`: lines are sent as messages, else as plain text.
  ChatThread(Client* client, SamplingFlags sampling, bool has_chat_format)
      : client_(client), sampling_(std::move(sampling)), has_chat_format_(has_chat_format) {}

  // Goes on in the session of that name, new or old; from `state_id`, when given.
  grpc::Status OpenSession(const std::string& name, const std::string& state_id);
  // Goes on from a state, without a session.
  grpc::Status OpenState(const std::string& state_id);

  // A system message that precedes the next line.
  void SetSystem(const std::string& text) { system_ = text; }

  // Sends a line and streams the answer. When Ctrl-C stopped it, a session stands where the server
  // stopped; a thread without one stands where it was.
  grpc::Status Say(const std::string& line, const std::function<void(std::string_view)>& on_text,
                   GenerationResult* result);

  // Pins the state that the thread stands at, and labels it name=NAME when NAME isn't "".
  grpc::Status Save(const std::string& name);
  // Makes a session of it and goes on there.
  grpc::Status Fork(const std::string& name);
  // That many answers back.
  grpc::Status Rewind(uint32_t num_answers);
  grpc::Status History(v1::GetHistoryResponse* history);
  // Starts from nothing; a session keeps its name.
  void StartAfresh();

  const std::string& state_id() const { return state_id_; }  // "" = nothing said yet
  const std::string& session() const { return session_; }    // "" = none
  uint64_t position() const { return position_; }

 private:
  void StandAt(const v1::State& state);
  void StandAt(const v1::Session& session);
  // After an error in the middle of a session: where it really stands.
  void Refresh();
  grpc::Status RewindStates(uint32_t num_answers);

  Client* client_;
  const SamplingFlags sampling_;
  const bool has_chat_format_;
  std::string system_;
  std::string session_, etag_, state_id_;
  uint64_t position_ = 0;
  bool is_fresh_ = false;        // the next line starts from nothing
  bool is_state_given_ = false;  // the next line starts from state_id_, not from the session's head
};

}  // namespace vivarium::cli
