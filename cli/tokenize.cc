// `vivarium tokenize`: text to token ids and back, from a tokenizer.json alone.
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/paths.h"
#include "cli/token_ids.h"
#include "engine/text/tokenizer.h"

namespace vivarium::cli {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  vivarium tokenize 'Once upon a time'\n"
    "  vivarium tokenize --model DIR --file story.txt --json > ids.json\n"
    "  vivarium tokenize --decode @ids.json\n";

class TokenizeCommand : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app =
        parent->add_subcommand("tokenize", "Turn text into token ids, or ids into text");
    app->add_option("TEXT", text_, "The text, or (with --decode) ids such as 1,2,3 or @FILE");
    app->add_option("--model", model_dir_,
                    "Directory with tokenizer.json; default: the bundled model")
        ->type_name("DIR");
    app->add_option("--file", file_, "Read the text from a file; - = standard input")
        ->type_name("FILE");
    app->add_flag("--decode", decode_, "Turn ids into text");
    app->add_flag("--special", parse_special_,
                  "Text of special tokens, such as <|endoftext|>, means the token");
    app->add_flag("--pieces", pieces_, "Print each id with its text, one a line");
    json_.Declare(app, "the ids (or, with --decode, the text)");
    app->footer(kFooter);
    return app;
  }

  int Run() override {
    if (!file_.empty() && !text_.empty()) {
      return Fail(kExitUsage, "tokenize takes TEXT or --file, not both");
    }
    const std::string dir = model_dir_.empty() ? BundledModelDir() : model_dir_;
    if (dir.empty()) return Fail(kExitUsage, "no bundled model found; name one with --model DIR");
    const auto tokenizer = engine::Tokenizer::Load(dir);
    if (!tokenizer.ok()) return FailLocally(tokenizer.status());
    return decode_ ? Decode(**tokenizer) : Encode(**tokenizer);
  }

 private:
  int Encode(const engine::Tokenizer& tokenizer) {
    if (!file_.empty()) {
      auto contents = ReadInputFile(file_);
      if (!contents.ok()) return FailLocally(contents.status());
      text_ = *std::move(contents);
    }
    const auto ids = tokenizer.Encode(text_, {.parse_special = parse_special_});
    if (!ids.ok()) return FailLocally(ids.status());
    if (json_.json) {
      PrintJson(*ids);
    } else if (pieces_) {
      for (int32_t id : *ids) PrintPiece(tokenizer, id);
    } else {
      PrintLine(absl::StrJoin(*ids, ","));
    }
    return kExitOk;
  }

  int Decode(const engine::Tokenizer& tokenizer) {
    const auto ids = ReadTokenIds(file_.empty() ? text_ : "@" + file_);
    if (!ids.ok()) return FailLocally(ids.status());
    if (pieces_) {
      for (int32_t id : *ids) PrintPiece(tokenizer, id);
      return kExitOk;
    }
    const std::string text = tokenizer.Decode(*ids, /*skip_special=*/false);
    if (json_.json) {
      PrintJson(text);
    } else {
      PrintLine(text);
    }
    return kExitOk;
  }

  // The bytes of a token may end in the middle of a character: JSON's escapes show what is there.
  static void PrintPiece(const engine::Tokenizer& tokenizer, int32_t id) {
    const Json quoted = std::string(tokenizer.TokenBytes(id));
    PrintLine(std::to_string(id) + "\t" +
              quoted.dump(-1, ' ', false, Json::error_handler_t::replace) +
              (tokenizer.IsSpecial(id) ? "\tspecial" : ""));
  }

  std::string text_, model_dir_, file_;
  bool decode_ = false, parse_special_ = false, pieces_ = false;
  JsonFlag json_;
};

}  // namespace

Commands MakeTokenizeCommands() {
  Commands commands;
  commands.push_back(std::make_unique<TokenizeCommand>());
  return commands;
}

}  // namespace vivarium::cli
