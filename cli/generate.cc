// `vivarium generate`: one Generate call.
#include <string>
#include <vector>

#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/generation_call.h"
#include "cli/output.h"
#include "cli/server_command.h"
#include "cli/token_ids.h"

namespace vivarium::cli {
namespace {

constexpr char kFooter[] =
    "Text streams to standard output; a line about what was restored, read and saved follows on\n"
    "standard error. The state is saved at the end unless --save says otherwise.\n"
    "\n"
    "Examples:\n"
    "  vivarium generate 'Once upon a time' --max-tokens 200 --temperature 0.8\n"
    "  vivarium generate --session me --chat 'My dog is called Pip.'\n"
    "  vivarium generate --session me --chat 'What is my dog called?'\n"
    "  vivarium generate --state st_... ''          go on from the pending token\n"
    "  vivarium generate --file book.txt --max-tokens 0 --save end     read now, ask later\n"
    "  vivarium generate --session book --file book.txt --save end,every=1000,keep=8\n"
    "  vivarium generate --json --seed 7 'The king said' | jq -r .state_id\n";

class GenerateCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("generate", "Generate text after a prompt or a state");
    prompt_option_ = app->add_option("PROMPT", prompt_,
                                     "The text to go on from; '' = from the state's pending token");
    app->add_option("--file", file_, "Read the prompt from a file; - = standard input")
        ->type_name("FILE");
    app->add_option("--tokens", tokens_, "The prompt as token ids: 1,2,3 or @FILE")
        ->type_name("IDS");
    app->add_flag("--chat", chat_, "The prompt is a user's message; the assistant answers");
    app->add_option("--system", system_, "With --chat: a system message before it")
        ->type_name("TEXT");
    json_.Declare(app, "one object with text, token ids, usage and state id");
    app->add_flag("-q,--quiet", quiet_, "No line on standard error at the end");
    sampling_.Declare(app);
    state_.Declare(app);
    connection_.Declare(app);
    app->footer(kFooter);
    return app;
  }

  int Prepare() override { return FillRequest(&request_); }

  int RunWith(Client& client) override {
    GenerationResult result;
    const bool is_streaming = !json_.json;
    const grpc::Status status = RunGeneration(
        client, request_,
        [is_streaming](std::string_view text) {
          if (is_streaming) PrintNow(text);
        },
        &result);
    if (is_streaming && (!result.text.empty() || status.ok())) PrintNow("\n");
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(GenerationJson(result));
    } else if (!quiet_) {
      std::fprintf(stderr, "%s\n", Faint("[" + GenerationSummary(result) + "]").c_str());
    }
    return kExitOk;
  }

 private:
  // Anything but kExitOk: printed already.
  int FillRequest(v1::GenerateRequest* request) {
    const int num_inputs =
        (prompt_option_->count() > 0 ? 1 : 0) + (file_.empty() ? 0 : 1) + (tokens_.empty() ? 0 : 1);
    if (num_inputs > 1) {
      return Fail(kExitUsage, "generate takes one of PROMPT, --file and --tokens, not several");
    }
    if (!tokens_.empty()) {
      if (chat_) return Fail(kExitUsage, "--chat takes text, not --tokens");
      const auto ids = ReadTokenIds(tokens_);
      if (!ids.ok()) return FailLocally(ids.status());
      request->mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    } else {
      std::string text = prompt_;
      if (!file_.empty()) {
        auto contents = ReadInputFile(file_);
        if (!contents.ok()) return FailLocally(contents.status());
        text = *std::move(contents);
      }
      if (text.empty() && system_.empty() && state_.state.empty() && state_.session.empty()) {
        return Fail(kExitUsage,
                    "generate needs a PROMPT, or a --state or --session to go on from; see "
                    "'vivarium generate --help'");
      }
      SetText(text, request);
    }
    sampling_.Fill(request);
    state_.Fill(request);
    return kExitOk;
  }

  void SetText(const std::string& text, v1::GenerateRequest* request) {
    if (text.empty() && system_.empty()) return;  // go on from the pending token
    if (!chat_ && system_.empty()) {
      request->set_text(text);
      return;
    }
    if (!system_.empty()) AddMessage("system", system_, request);
    if (!text.empty()) AddMessage("user", text, request);
  }

  static void AddMessage(const char* role, const std::string& content,
                         v1::GenerateRequest* request) {
    v1::ChatMessage* message = request->mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  CLI::Option* prompt_option_ = nullptr;
  v1::GenerateRequest request_;
  std::string prompt_, file_, tokens_, system_;
  bool chat_ = false, quiet_ = false;
  JsonFlag json_;
  SamplingFlags sampling_;
  StateFlags state_;
};

}  // namespace

Commands MakeGenerateCommands() {
  Commands commands;
  commands.push_back(std::make_unique<GenerateCommand>());
  return commands;
}

}  // namespace vivarium::cli
