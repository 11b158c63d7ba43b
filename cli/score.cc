// `vivarium score`: log-probabilities of a text after each of several states.
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/proto_json.h"
#include "cli/server_command.h"
#include "cli/token_ids.h"

namespace vivarium::cli {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  vivarium score 'The cat sat on the mat.'\n"
    "  vivarium score --state st_... --state st_... ' Paris'    which state expects it more?\n";

class ScoreCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("score", "Log-probabilities of a text after states");
    app->add_option("TEXT", text_, "The text to score");
    app->add_option("--tokens", tokens_, "Token ids instead: 1,2,3 or @FILE")->type_name("IDS");
    app->add_option("--state", states_,
                    "Score after this state; may be repeated; none = from nothing")
        ->type_name("ID")
        ->expected(1)
        ->take_all();
    json_.Declare(app, "scores and token ids");
    connection_.Declare(app);
    app->footer(kFooter);
    return app;
  }

  int Prepare() override {
    if (text_.empty() == tokens_.empty()) {
      return Fail(kExitUsage, "score takes one of TEXT and --tokens");
    }
    for (const std::string& state : states_) request_.add_state_ids(state);
    if (tokens_.empty()) {
      request_.set_text(text_);
    } else {
      const auto ids = ReadTokenIds(tokens_);
      if (!ids.ok()) return FailLocally(ids.status());
      request_.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    }
    return kExitOk;
  }

  int RunWith(Client& client) override {
    v1::ScoreResponse response;
    const grpc::Status status =
        client.Do(client.generation(), &v1::Generation::Stub::Score, request_, &response);
    if (!status.ok()) return client.Fail(status);
    Print(response);
    return kExitOk;
  }

 private:
  void Print(const v1::ScoreResponse& response) const {
    if (json_.json) {
      PrintJson(ToJson(response));
      return;
    }
    Table table({{"STATE"}, {"TOTAL LOGPROB", true}, {"PER TOKEN", true}, {"TOKENS", true}});
    for (const v1::Scores& scores : response.scores()) {
      const int num_scored = scores.logprobs_size();
      table.Add(
          {scores.state_id().empty() ? "(from nothing)" : scores.state_id(),
           absl::StrFormat("%.4f", scores.total_logprob()),
           num_scored == 0 ? "-" : absl::StrFormat("%.4f", scores.total_logprob() / num_scored),
           std::to_string(num_scored)});
    }
    PrintNow(table.Render());
  }

  std::string text_, tokens_;
  v1::ScoreRequest request_;
  std::vector<std::string> states_;
  JsonFlag json_;
};

}  // namespace

Commands MakeScoreCommands() {
  Commands commands;
  commands.push_back(std::make_unique<ScoreCommand>());
  return commands;
}

}  // namespace vivarium::cli
