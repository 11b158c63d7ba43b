// `vivarium sessions ls|show|create|history|rewind|rm`.
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/listing.h"
#include "cli/output.h"
#include "cli/proto_json.h"
#include "cli/server_command.h"

namespace vivarium::cli {
namespace {

// A call that gives a session back, and what is printed of it.
template <typename Request>
int CallAndPrint(Client& client,
                 grpc::Status (v1::Sessions::Stub::*method)(grpc::ClientContext*, const Request&,
                                                            v1::Session*),
                 const Request& request, bool json) {
  v1::Session session;
  const grpc::Status status = client.Do(client.sessions(), method, request, &session);
  if (!status.ok()) return client.Fail(status);
  if (json) {
    PrintJson(ToJson(session));
  } else {
    PrintNow(absl::StrCat("session      ", session.name(), "\netag         ", session.etag(),
                          "\nmoved        ", FormatWhen(session.update_time()), "\n",
                          DescribeState(session.head())));
  }
  return kExitOk;
}

class SessionsLsCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("ls", "List sessions by name");
    app->add_option("--limit", limit_, "At most that many")
        ->type_name("N")
        ->check(CLI::Range(size_t{1}, kMaxListed));
    json_.Declare(app, "an array of sessions");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    std::vector<v1::Session> sessions;
    const grpc::Status status = ListSessions(client, limit_, &sessions);
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(ToJsonArray(sessions));
      return kExitOk;
    }
    Table table({{"NAME"}, {"TOKENS", true}, {"MOVED"}, {"HEAD"}});
    for (const v1::Session& session : sessions) {
      table.Add({session.name(), FormatCount(session.head().position()),
                 FormatWhen(session.update_time()), session.head().id()});
    }
    PrintNow(table.Render());
    return kExitOk;
  }

 private:
  size_t limit_ = kMaxListed;
  JsonFlag json_;
};

class SessionsShowCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("show", "Show a session and its head");
    app->add_option("NAME", name_, "The session")->required();
    json_.Declare(app, "the session");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::GetSessionRequest request;
    request.set_name(name_);
    return CallAndPrint(client, &v1::Sessions::Stub::GetSession, request, json_.json);
  }

 private:
  std::string name_;
  JsonFlag json_;
};

class SessionsCreateCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("create", "Name a state: a fork of what led to it");
    app->add_option("NAME", name_, "The new session")->required();
    app->add_option("--from", state_id_, "The state that becomes its head")
        ->type_name("ID")
        ->required();
    json_.Declare(app, "the session");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::CreateSessionRequest request;
    request.set_name(name_);
    request.set_state_id(state_id_);
    return CallAndPrint(client, &v1::Sessions::Stub::CreateSession, request, json_.json);
  }

 private:
  std::string name_, state_id_;
  JsonFlag json_;
};

class SessionsHistoryCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("history", "What was said, oldest first");
    app->add_option("NAME", name_, "The session (or a state's id with --state)")->required();
    app->add_flag("--state", is_state_, "NAME is a state's id");
    json_.Declare(app, "an array of states with their transcripts");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::GetHistoryRequest request;
    if (is_state_) {
      request.set_state_id(name_);
    } else {
      request.set_session(name_);
    }
    std::vector<v1::State> states;
    const grpc::Status status = ReadHistory(client, request, &states);
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(ToJsonArray(states));
      return kExitOk;
    }
    for (const v1::State& state : states) {
      PrintNow(absl::StrCat("-- ", state.id(), ", ", FormatCount(state.position()), " tokens, ",
                            FormatWhen(state.create_time()), state.snapshot() ? ", snapshot" : "",
                            state.dropped() ? ", dropped" : "", "\n", FormatTranscript(state)));
    }
    return kExitOk;
  }

 private:
  // All of it, oldest first: a long history comes in parts, the newest first.
  static grpc::Status ReadHistory(Client& client, v1::GetHistoryRequest request,
                                  std::vector<v1::State>* states) {
    std::vector<v1::GetHistoryResponse> parts;
    size_t num_states = 0;
    for (bool is_whole = false; !is_whole && num_states < kMaxListed;) {
      v1::GetHistoryResponse& part = parts.emplace_back();
      grpc::Status status =
          client.Do(client.sessions(), &v1::Sessions::Stub::GetHistory, request, &part);
      // What came before may have gone meanwhile.
      if (!status.ok() && parts.size() > 1 && status.error_code() == grpc::StatusCode::NOT_FOUND) {
        break;
      }
      if (!status.ok()) return status;
      is_whole =
          !part.is_truncated() || part.states().empty() || part.states(0).parent_id().empty();
      if (!is_whole) request.set_state_id(part.states(0).parent_id());
      num_states += static_cast<size_t>(part.states_size());
    }
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      for (v1::State& state : *part->mutable_states()) states->push_back(std::move(state));
    }
    return grpc::Status::OK;
  }

  std::string name_;
  bool is_state_ = false;
  JsonFlag json_;
};

class SessionsRewindCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("rewind", "Move a session's head back to an ancestor");
    app->add_option("NAME", name_, "The session")->required();
    constexpr char kGroup[] = "Where to (one of)";
    app->add_option("--steps", steps_, "That many states back, not counting snapshots")
        ->type_name("N")
        ->group(kGroup);
    app->add_option("--to", to_,
                    "To this state, or to the newest one at or before that many tokens")
        ->type_name("POSITION|STATE")
        ->check(CheckTarget)
        ->group(kGroup);
    app->add_option("--etag", etag_, "Only if the session's etag is still this")->type_name("ETAG");
    json_.Declare(app, "the session");
    connection_.Declare(app);
    return app;
  }

  int Prepare() override {
    if (steps_.has_value() == to_.empty()) return kExitOk;
    return Fail(kExitUsage, "sessions rewind needs one of --steps and --to");
  }

  int RunWith(Client& client) override {
    v1::RewindSessionRequest request;
    request.set_name(name_);
    if (steps_) request.set_steps(*steps_);
    if (uint64_t position = 0; absl::SimpleAtoi(to_, &position)) {
      request.set_position(position);
    } else if (!to_.empty()) {
      request.set_state_id(to_);
    }
    request.set_expected_etag(etag_);
    return CallAndPrint(client, &v1::Sessions::Stub::RewindSession, request, json_.json);
  }

 private:
  static std::string CheckTarget(const std::string& text) {
    uint64_t position = 0;
    if (absl::SimpleAtoi(text, &position) || absl::StartsWith(text, "st_")) return "";
    return "'" + text + "' is neither a number of tokens nor a state's id (st_...)";
  }

  std::string name_, to_, etag_;
  std::optional<uint32_t> steps_;
  JsonFlag json_;
};

class SessionsRmCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("rm", "Delete names; their states live on");
    app->add_option("NAME", names_, "The sessions")->required();
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    for (const std::string& name : names_) {
      v1::DeleteSessionRequest request;
      request.set_name(name);
      google::protobuf::Empty nothing;
      const grpc::Status status =
          client.Do(client.sessions(), &v1::Sessions::Stub::DeleteSession, request, &nothing);
      if (!status.ok()) return client.Fail(status);
      PrintLine("deleted " + name);
    }
    return kExitOk;
  }

 private:
  std::vector<std::string> names_;
};

}  // namespace

Commands MakeSessionsCommands() {
  Commands commands;
  commands.push_back(std::make_unique<SessionsLsCommand>());
  commands.push_back(std::make_unique<SessionsShowCommand>());
  commands.push_back(std::make_unique<SessionsCreateCommand>());
  commands.push_back(std::make_unique<SessionsHistoryCommand>());
  commands.push_back(std::make_unique<SessionsRewindCommand>());
  commands.push_back(std::make_unique<SessionsRmCommand>());
  return commands;
}

}  // namespace vivarium::cli
