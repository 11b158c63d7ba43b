// `vivarium states ls|show|tree|rm|verify`; export and import are in state_transfer.cc.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/listing.h"
#include "cli/output.h"
#include "cli/proto_json.h"
#include "cli/server_command.h"
#include "cli/state_transfer.h"

namespace vivarium::cli {
namespace {

class StatesLsCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("ls", "List states, newest first");
    app->add_option("--session", session_, "Only those made in this session")->type_name("NAME");
    app->add_option("--parent", parent_id_, "Only the children of this state")->type_name("ID");
    labels_.Declare(app, "Only those with this label; may be repeated");
    app->add_flag("--all", show_dropped_, "Also deleted and expired ones with descendants");
    app->add_option("--limit", limit_, "At most that many")
        ->type_name("N")
        ->check(CLI::Range(size_t{1}, kMaxListed));
    json_.Declare(app, "an array of states");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::ListStatesRequest request;
    request.set_session(session_);
    request.set_parent_id(parent_id_);
    request.set_show_dropped(show_dropped_);
    labels_.Fill(request.mutable_labels());
    std::vector<v1::State> states;
    const grpc::Status status = ListStates(client, request, limit_, &states);
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(ToJsonArray(states));
      return kExitOk;
    }
    Table table({{"ID"},
                 {"TOKENS", true},
                 {"SIZE", true},
                 {"CREATED"},
                 {"EXPIRES"},
                 {"SESSION"},
                 {"LABELS"}});
    for (const v1::State& state : states) {
      table.Add({state.id(), FormatCount(state.position()), FormatBytes(state.size_bytes()),
                 FormatWhen(state.create_time()),
                 state.has_expire_time() ? FormatWhen(state.expire_time()) : "never",
                 state.session(), FormatLabels(state)});
    }
    PrintNow(table.Render());
    return kExitOk;
  }

 private:
  std::string session_, parent_id_;
  LabelFlags labels_;
  bool show_dropped_ = false;
  size_t limit_ = kMaxListed;
  JsonFlag json_;
};

class StatesShowCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("show", "Show a state and the text since its parent");
    app->add_option("ID", id_, "The state")->required();
    json_.Declare(app, "the state");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::GetStateRequest request;
    request.set_id(id_);
    request.set_with_transcript(true);
    v1::State state;
    const grpc::Status status =
        client.Do(client.states(), &v1::States::Stub::GetState, request, &state);
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(ToJson(state));
    } else {
      PrintNow(DescribeState(state) + "\n" + FormatTranscript(state));
    }
    return kExitOk;
  }

 private:
  std::string id_;
  JsonFlag json_;
};

// Branches deeper than this no longer move to the right.
constexpr size_t kMaxIndentBytes = 200;

// Lineage as an indented tree. Iterative: a thread of many saves is a deep chain, which stays in
// one column; only branches move to the right.
class StateTree {
 public:
  StateTree(std::vector<v1::State> states, const std::vector<v1::Session>& sessions) {
    for (const v1::Session& session : sessions)
      heads_[session.head().id()].push_back(session.name());
    std::set<std::string> ids;
    for (const v1::State& state : states) ids.insert(state.id());
    // Newest first came in: the oldest child is the last.
    for (auto state = states.rbegin(); state != states.rend(); ++state) {
      const bool is_root = ids.count(state->parent_id()) == 0;
      children_[is_root ? "" : state->parent_id()].push_back(std::move(*state));
    }
  }

  std::string Render() const {
    struct Frame {
      const v1::State* state;
      std::string prefix;     // of this line
      std::string continued;  // of the lines below it
    };
    std::string text;
    std::vector<Frame> stack;
    const auto push = [&](const std::string& parent, const std::string& indent) {
      const auto found = children_.find(parent);
      if (found == children_.end()) return;
      const std::vector<v1::State>& children = found->second;
      const bool is_chain = children.size() == 1 || indent.size() > kMaxIndentBytes;
      for (size_t i = children.size(); i-- > 0;) {
        const bool is_last = i + 1 == children.size();
        if (parent.empty()) {
          stack.push_back({&children[i], "", ""});
        } else if (is_chain) {
          stack.push_back({&children[i], indent, indent});
        } else {
          stack.push_back({&children[i], indent + (is_last ? "└─ " : "├─ "),
                           indent + (is_last ? "   " : "│  ")});
        }
      }
    };
    push("", "");
    while (!stack.empty()) {
      const Frame frame = std::move(stack.back());
      stack.pop_back();
      text += frame.prefix + Line(*frame.state) + "\n";
      push(frame.state->id(), frame.continued);
    }
    return text;
  }

 private:
  std::string Line(const v1::State& state) const {
    std::string line = absl::StrCat(state.id(), "  ", FormatCount(state.position()), " tokens, ",
                                    FormatWhen(state.create_time()));
    if (const auto found = heads_.find(state.id()); found != heads_.end()) {
      for (const std::string& name : found->second) absl::StrAppend(&line, "  <- ", name);
    }
    if (const std::string labels = FormatLabels(state); !labels.empty()) {
      absl::StrAppend(&line, "  ", labels);
    }
    return line;
  }

  std::map<std::string, std::vector<v1::State>> children_;  // by parent id, oldest first
  std::map<std::string, std::vector<std::string>> heads_;   // session names by state id
};

class StatesTreeCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand(
        "tree", "Show which states grew out of which, snapshots marked; <- marks sessions' heads");
    app->add_option("--session", session_, "Only those made in this session")->type_name("NAME");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::ListStatesRequest request;
    request.set_session(session_);
    request.set_show_dropped(true);
    std::vector<v1::State> states;
    std::vector<v1::Session> sessions;
    grpc::Status status = ListStates(client, request, kMaxListed, &states);
    if (status.ok()) status = ListSessions(client, kMaxListed, &sessions);
    if (!status.ok()) return client.Fail(status);
    PrintNow(StateTree(std::move(states), sessions).Render());
    return kExitOk;
  }

 private:
  std::string session_;
};

class StatesRmCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app =
        parent->add_subcommand("rm", "Delete states; what their descendants' history needs stays");
    app->add_option("ID", ids_, "The states")->required();
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    for (const std::string& id : ids_) {
      v1::DeleteStateRequest request;
      request.set_id(id);
      google::protobuf::Empty nothing;
      const grpc::Status status =
          client.Do(client.states(), &v1::States::Stub::DeleteState, request, &nothing);
      if (!status.ok()) return client.Fail(status);
      PrintLine("deleted " + id);
    }
    return kExitOk;
  }

 private:
  std::vector<std::string> ids_;
};

class StatesVerifyCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app =
        parent->add_subcommand("verify", "Read every byte of states and check every checksum");
    app->add_option("ID", ids_, "The states; none = all of them");
    json_.Declare(app, "an array with each state's id and verified bytes");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    int exit_code = kExitOk;
    if (ids_.empty()) {
      std::vector<v1::State> states;
      const grpc::Status status = ListStates(client, {}, kMaxListed, &states);
      if (!status.ok()) return client.Fail(status);
      for (const v1::State& state : states) ids_.push_back(state.id());
    }
    Json array = Json::array();
    for (const std::string& id : ids_) {
      v1::VerifyStateRequest request;
      request.set_id(id);
      v1::VerifyStateResponse response;
      const grpc::Status status =
          client.Do(client.states(), &v1::States::Stub::VerifyState, request, &response);
      // One bad state doesn't hide the others; the first error's code is the exit code.
      if (!status.ok()) {
        const int code = client.Fail(status);
        if (exit_code == kExitOk) exit_code = code;
        if (code != kExitServerError) return code;
        continue;
      }
      array.push_back({{"state_id", id}, {"verified_bytes", response.verified_bytes()}});
      if (!json_.json)
        PrintLine(absl::StrCat(id, "  ok, ", FormatBytes(response.verified_bytes())));
    }
    if (json_.json) PrintJson(array);
    return exit_code;
  }

 private:
  std::vector<std::string> ids_;
  JsonFlag json_;
};

}  // namespace

Commands MakeStatesCommands() {
  Commands commands;
  commands.push_back(std::make_unique<StatesLsCommand>());
  commands.push_back(std::make_unique<StatesShowCommand>());
  commands.push_back(std::make_unique<StatesTreeCommand>());
  commands.push_back(std::make_unique<StatesRmCommand>());
  commands.push_back(MakeStatesExportCommand());
  commands.push_back(MakeStatesImportCommand());
  commands.push_back(std::make_unique<StatesVerifyCommand>());
  return commands;
}

}  // namespace vivarium::cli
