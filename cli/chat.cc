// `vivarium chat`: a conversation at the terminal.
#include <cstdio>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/chat_thread.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/line_reader.h"
#include "cli/listing.h"
#include "cli/output.h"
#include "cli/server_command.h"

namespace vivarium::cli {
namespace {

constexpr char kHelp[] =
    "  /save [NAME]   keep this state for good (pinned), labelled name=NAME\n"
    "  /fork NAME     make a session of this point and go on there\n"
    "  /rewind [N]    take back the last N answers (1)\n"
    "  /new           start from nothing\n"
    "  /history       what was said so far\n"
    "  /where         session, state and length\n"
    "  /quit          leave (or Ctrl-D); the thread is saved\n"
    "  //text         send a line that begins with /\n"
    "  Ctrl-C         stop the answer\n";

constexpr char kFooter[] =
    "Inside:\n"
    "  /save [NAME]  /fork NAME  /rewind [N]  /new  /history  /where  /quit  /help\n"
    "\n"
    "Every answer saves a state. With --session the thread has a name and goes on next time, even\n"
    "after the server was killed; without one, the id shown after each answer is the way back.\n"
    "(For line editing: rlwrap vivarium chat.)\n"
    "\n"
    "Examples:\n"
    "  vivarium chat --session me\n"
    "  vivarium chat --state st_... --temperature 0.7";

// What is typed until the end, on one thread.
class ChatLoop {
 public:
  ChatLoop(Client* client, ChatThread* thread) : client_(client), thread_(thread) {}

  int Run() {
    LineReader reader;
    while (const std::optional<std::string> line = reader.Read("> ")) {
      if (line->empty()) continue;
      if (line->front() == '/' && line->substr(0, 2) != "//") {
        if (!RunCommand(*line)) break;
      } else {
        Say(line->front() == '/' ? line->substr(1) : *line);
      }
      if (exit_code_ == kExitCannotConnect) return exit_code_;
    }
    if (!thread_->state_id().empty()) ShowWhere();
    return exit_code_;
  }

 private:
  void Note(std::string_view text) {
    std::fprintf(stderr, "%s\n", Faint(absl::StrCat("[", std::string(text), "]")).c_str());
  }

  // Prints an error and goes on; only a lost connection ends the loop, and the last error decides
  // the exit code of a chat whose lines were piped in.
  bool Check(const grpc::Status& status) {
    if (status.ok()) {
      exit_code_ = kExitOk;
      return true;
    }
    const int code = client_->Fail(status);
    exit_code_ = code == kExitInterrupted ? kExitOk : code;
    return false;
  }

  void Say(const std::string& line) {
    GenerationResult result;
    const grpc::Status status = thread_->Say(line, PrintNow, &result);
    PrintNow("\n");
    if (Check(status)) Note(GenerationSummary(result));
  }

  void ShowWhere() {
    Note(absl::StrCat(
        thread_->session().empty() ? "no session" : "session " + thread_->session(), " · ",
        thread_->state_id().empty() ? "nothing said yet"
                                    : absl::StrCat(thread_->state_id(), " · ",
                                                   FormatCount(thread_->position()), " tokens")));
  }

  bool NeedsState() {
    if (!thread_->state_id().empty()) return true;
    Note("nothing has been said yet");
    return false;
  }

  void Save(const std::string& name) {
    if (!NeedsState() || !Check(thread_->Save(name))) return;
    Note("kept " + thread_->state_id() + (name.empty() ? "" : " as " + name));
  }

  void Fork(const std::string& name) {
    if (name.empty()) {
      Note("/fork needs a NAME for the new session");
    } else if (NeedsState() && Check(thread_->Fork(name))) {
      ShowWhere();
    }
  }

  void Rewind(const std::string& count) {
    uint32_t num_answers = 1;
    if (!count.empty() && (!absl::SimpleAtoi(count, &num_answers) || num_answers == 0)) {
      Note("/rewind takes a number of answers, not '" + count + "'");
    } else if (NeedsState() && Check(thread_->Rewind(num_answers))) {
      ShowWhere();
    }
  }

  void History() {
    v1::GetHistoryResponse history;
    if (!NeedsState() || !Check(thread_->History(&history))) return;
    for (const v1::State& state : history.states()) PrintNow(FormatTranscript(state));
  }

  // False when the chat is over.
  bool RunCommand(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string argument = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/quit" || name == "/q") return false;
    if (name == "/save") {
      Save(argument);
    } else if (name == "/fork") {
      Fork(argument);
    } else if (name == "/rewind") {
      Rewind(argument);
    } else if (name == "/new") {
      thread_->StartAfresh();
      Note("starting from nothing");
    } else if (name == "/history") {
      History();
    } else if (name == "/where") {
      ShowWhere();
    } else if (name == "/help") {
      PrintNow(kHelp);
    } else {
      Note("there is no " + name + "; /help lists what there is");
    }
    return true;
  }

  Client* client_;
  ChatThread* thread_;
  int exit_code_ = kExitOk;
};

class ChatCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("chat", "Talk to a model");
    app->add_option("--session", session_, "Go on in this session, or start it")->type_name("NAME");
    app->add_option("--state", state_, "Go on from this state")->type_name("ID");
    app->add_option("--system", system_, "A system message before the first line")
        ->type_name("TEXT");
    app->add_flag("--raw", raw_, "Send lines as plain text, not as chat messages");
    sampling_.Declare(app);
    connection_.Declare(app);
    app->footer(kFooter);
    return app;
  }

  int RunWith(Client& client) override {
    v1::Model model;
    grpc::Status status =
        client.Do(client.models(), &v1::Models::Stub::GetModel, v1::GetModelRequest(), &model);
    if (!status.ok()) return client.Fail(status);
    ChatThread thread(&client, sampling_, model.has_chat_format() && !raw_);
    if (!session_.empty()) {
      status = thread.OpenSession(session_, state_);
    } else if (!state_.empty()) {
      status = thread.OpenState(state_);
    }
    if (!status.ok()) return client.Fail(status);
    thread.SetSystem(system_);
    Greet(model, thread);
    return ChatLoop(&client, &thread).Run();
  }

 private:
  void Greet(const v1::Model& model, const ChatThread& thread) const {
    if (!IsTerminal(stdin)) return;
    std::string text = absl::StrCat(model.name(), " at ", connection_.server);
    if (!thread.session().empty()) absl::StrAppend(&text, " · session ", thread.session());
    if (thread.position() > 0) {
      absl::StrAppend(&text, " · going on after ", FormatCount(thread.position()), " tokens");
    }
    if (!model.has_chat_format()) text += " · no chat format: lines are plain text";
    std::fprintf(stderr, "%s\n", Faint("[" + text + " · /help]").c_str());
  }

  std::string session_, state_, system_;
  bool raw_ = false;
  SamplingFlags sampling_;
};

}  // namespace

Commands MakeChatCommands() {
  Commands commands;
  commands.push_back(std::make_unique<ChatCommand>());
  return commands;
}

}  // namespace vivarium::cli
