// The commands that talk to a server, against a real `vivarium serve` process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "tests/support/process.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_environment.h"

namespace vivarium::test {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using Json = nlohmann::json;

class ServerCommandsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start({.args = {"--threads", "1"}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  ProcessResult Run(std::vector<std::string> args, const ProcessOptions& options = {}) {
    args.insert(args.begin(), VivariumBinary());
    args.insert(args.end(), {"--server", server_->address()});
    auto result = RunProcess(args, options);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : ProcessResult();
  }

  // Of a command that must succeed and print JSON.
  Json RunJson(std::vector<std::string> args) {
    args.push_back("--json");
    const ProcessResult result = Run(args);
    EXPECT_EQ(result.exit_code, 0) << absl::StrJoin(args, " ") << ": " << result.err;
    Json json = Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(json.is_discarded()) << result.out;
    return json;
  }

  // Fails with `exit_code` and one sentence that has `text` in it.
  void ExpectFailure(const std::vector<std::string>& args, int exit_code, const std::string& text) {
    const ProcessResult result = Run(args);
    EXPECT_EQ(result.exit_code, exit_code) << absl::StrJoin(args, " ") << ": " << result.err;
    EXPECT_THAT(result.err, HasSubstr(text)) << absl::StrJoin(args, " ");
  }

  std::unique_ptr<ServerProcess> server_;
  TempDir dir_;
};

TEST_F(ServerCommandsTest, GenerateStreamsTextAndJsonSaysTheSame) {
  const std::vector<std::string> args = {
      "generate", "Once upon a time", "--max-tokens", "20", "--temperature", "0", "--ignore-eos"};
  const ProcessResult streamed = Run(args);
  ASSERT_EQ(streamed.exit_code, 0) << streamed.err;
  EXPECT_THAT(streamed.err, HasSubstr("wrote 20"));
  const Json json = RunJson(args);
  EXPECT_EQ(json["text"].get<std::string>() + "\n", streamed.out);
  EXPECT_EQ(json["token_ids"].size(), 20u);
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_EQ(json["usage"]["restored_tokens"], 0);
  EXPECT_GT(json["usage"]["prefill_tokens"], 0);
  EXPECT_EQ(json["usage"]["output_tokens"], 20);
  EXPECT_TRUE(json["state_id"].is_string());
  EXPECT_EQ(json["state_id"].get<std::string>().size(), 29u);
  EXPECT_FALSE(json.contains("logprobs"));
}

TEST_F(ServerCommandsTest, EmptyPromptGoesOnFromThePendingToken) {
  const std::vector<std::string> sampling = {"--temperature", "0.8",        "--seed", "5",
                                             "--ignore-eos",  "--logprobs", "2"};
  const auto generate = [&](std::vector<std::string> args) {
    args.insert(args.begin(), "generate");
    args.insert(args.end(), sampling.begin(), sampling.end());
    return RunJson(args);
  };
  const Json whole = generate({"The little dog", "--max-tokens", "24"});
  const Json first = generate({"The little dog", "--max-tokens", "10"});
  const Json second = RunJson({"generate", "--state", first["state_id"], "", "--max-tokens", "14",
                               "--ignore-eos", "--logprobs", "2"});
  Json joined = first["token_ids"];
  for (const Json& id : second["token_ids"]) joined.push_back(id);
  EXPECT_EQ(joined, whole["token_ids"]);
  Json joined_logprobs = first["logprobs"];
  for (const Json& entry : second["logprobs"]) joined_logprobs.push_back(entry);
  EXPECT_EQ(joined_logprobs, whole["logprobs"]);
  EXPECT_EQ(whole["logprobs"].size(), 24u);
  EXPECT_EQ(whole["logprobs"][0]["top"].size(), 2u);
  EXPECT_EQ(whole["logprobs"][0]["token_id"], whole["token_ids"][0]);
  EXPECT_GT(second["usage"]["restored_tokens"], 0);
  EXPECT_EQ(second["usage"]["prefill_tokens"], 1);
}

TEST_F(ServerCommandsTest, SavePolicies) {
  const auto generate = [&](const std::string& save) {
    return RunJson({"generate", "A cat", "--max-tokens", "300", "--ignore-eos", "--save", save});
  };
  const Json none = generate("none");
  EXPECT_EQ(none["state_id"], "");
  EXPECT_FALSE(none.contains("state"));
  const Json prompt = generate("prompt");
  EXPECT_EQ(prompt["saved_state_ids"], Json::array({prompt["state_id"]}));
  const Json all = generate("end,prompt,every=16");
  // At the prompt's end, and on the way (a slow store may skip places, but not all of them).
  EXPECT_GE(all["saved_state_ids"].size(), 2u);
  EXPECT_EQ(all["state_id"], all["state"]["id"]);
  const Json read_only =
      RunJson({"generate", "A cat sat.", "--max-tokens", "0", "--label", "kind=document"});
  EXPECT_EQ(read_only["usage"]["output_tokens"], 0);
  EXPECT_EQ(read_only["state"]["labels"]["kind"], "document");
  const Json found = RunJson({"states", "ls", "--label", "kind=document"});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0]["id"], read_only["state_id"]);
}

TEST_F(ServerCommandsTest, PromptsFromFilesAndTokens) {
  WriteFile(dir_.File("prompt"), "Once upon a time");
  const std::vector<std::string> tail = {"--max-tokens", "5", "--temperature", "0"};
  const auto generate = [&](std::vector<std::string> args) {
    args.insert(args.begin(), "generate");
    args.insert(args.end(), tail.begin(), tail.end());
    return RunJson(args);
  };
  const Json from_text = generate({"Once upon a time"});
  EXPECT_EQ(generate({"--file", dir_.File("prompt")})["token_ids"], from_text["token_ids"]);
  const auto ids = RunProcess({VivariumBinary(), "tokenize", "Once upon a time"});
  EXPECT_EQ(generate({"--tokens", ids->out})["token_ids"], from_text["token_ids"]);
}

TEST_F(ServerCommandsTest, ServerErrorsAreOneSentenceWithAReason) {
  ExpectFailure({"generate", "--state", "st_00000000000000000000000000", ""}, 1, "NOT_FOUND");
  ExpectFailure({"generate", "a", "--temperature", "-1"}, 1, "INVALID_ARGUMENT");
  ExpectFailure({"states", "show", "nonsense"}, 1, "vivarium: ");
  ExpectFailure({"sessions", "show", "nobody"}, 1, "NOT_FOUND");
  ExpectFailure({"generate", "a", "--max-tokens", "100000", "--ignore-eos", "--timeout", "0.5"}, 1,
                "DEADLINE_EXCEEDED");
  // The reason of the ErrorInfo stands after the code.
  EXPECT_THAT(Run({"sessions", "show", "nobody"}).err,
              MatchesRegex(".*\\(NOT_FOUND, [A-Z_]+\\)\n"));
}

TEST_F(ServerCommandsTest, SessionsFromBirthToDeath) {
  const Json first =
      RunJson({"generate", "--session", "me", "Hello", "--max-tokens", "4", "--ignore-eos"});
  EXPECT_EQ(first["started"]["session_created"], true);
  const Json second =
      RunJson({"generate", "--session", "me", " and", "--max-tokens", "4", "--ignore-eos"});
  EXPECT_EQ(second["started"]["source_state_id"], first["state_id"]);

  EXPECT_EQ(RunJson({"sessions", "ls"})[0]["name"], "me");
  EXPECT_EQ(RunJson({"sessions", "show", "me"})["head"]["id"], second["state_id"]);
  const Json history = RunJson({"sessions", "history", "me"});
  ASSERT_EQ(history.size(), 2u);
  EXPECT_EQ(history[0]["transcript"][0]["text"], "Hello");
  EXPECT_EQ(history[0]["transcript"][0]["is_output"], false);
  EXPECT_THAT(Run({"sessions", "history", "me"}).out, HasSubstr("> Hello\n"));

  const std::string first_id = first["state_id"];
  const std::string second_id = second["state_id"];
  EXPECT_EQ(RunJson({"sessions", "create", "fork", "--from", first_id})["head"]["id"], first_id);
  EXPECT_EQ(Run({"sessions", "create", "fork", "--from", first_id}).exit_code, 1);
  EXPECT_EQ(RunJson({"sessions", "rewind", "me", "--steps", "1"})["head"]["id"], first_id);
  // The head of a session can't be deleted, the state that no session points at can.
  EXPECT_EQ(Run({"states", "rm", first_id}).exit_code, 1);
  EXPECT_EQ(Run({"states", "rm", second_id}).exit_code, 0);
  EXPECT_EQ(Run({"sessions", "rm", "me", "fork"}).exit_code, 0);
  EXPECT_EQ(RunJson({"sessions", "ls"}).size(), 0u);
}

TEST_F(ServerCommandsTest, SnapshotsAreMarkedThinnedAndGoneBackTo) {
  const Json made = RunJson({"generate", "--session", "book", "Once upon a time", "--max-tokens",
                             "150", "--ignore-eos", "--save", "end,every=16,keep=1"});
  ASSERT_GE(made["saved_state_ids"].size(), 1u);
  const std::string first = made["saved_state_ids"][0];  // the oldest is never thinned
  EXPECT_THAT(Run({"states", "tree"}).out, HasSubstr("(snapshot)"));
  std::vector<int32_t> thread;
  size_t num_thinned = 0;
  for (const Json& state : RunJson({"sessions", "history", "book"})) {
    for (const Json& entry : state["transcript"]) {
      thread.insert(thread.end(), entry["token_ids"].begin(), entry["token_ids"].end());
    }
    if (!state["dropped"].get<bool>()) continue;
    ++num_thinned;
    ExpectFailure({"sessions", "rewind", "book", "--to", state["id"]}, 1,
                  "the nearest one before is at position");
  }
  EXPECT_TRUE(num_thinned > 0 || made["saved_state_ids"].size() <= 6);

  const Json back = RunJson({"sessions", "rewind", "book", "--to", first});
  EXPECT_EQ(back["head"]["id"], first);
  const size_t position = back["head"]["position"];
  EXPECT_EQ(position % 16, 0u);
  EXPECT_EQ(RunJson({"sessions", "history", "book"}).size(), 1u);
  const Json again =
      RunJson({"generate", "--session", "book", "", "--max-tokens", "10", "--ignore-eos"});
  EXPECT_EQ(again["token_ids"], Json(std::vector<int32_t>(
                                    thread.begin() + static_cast<std::ptrdiff_t>(position) + 1,
                                    thread.begin() + static_cast<std::ptrdiff_t>(position) + 11)));
  const std::string to = std::to_string(position + 5);
  EXPECT_EQ(RunJson({"sessions", "rewind", "book", "--to", to})["head"]["id"], first);
  ExpectFailure({"sessions", "rewind", "book", "--to", "3"}, 1, "its oldest state is at 16");
}

TEST_F(ServerCommandsTest, StatesListedShownDrawnAndVerified) {
  const std::string root =
      RunJson({"generate", "A dog", "--max-tokens", "3", "--session", "s"})["state_id"];
  const std::string child =
      RunJson({"generate", " ran", "--max-tokens", "3", "--state", root})["state_id"];
  const std::string other =
      RunJson({"generate", " sat", "--max-tokens", "3", "--state", root})["state_id"];
  EXPECT_EQ(RunJson({"states", "ls"}).size(), 3u);
  EXPECT_EQ(RunJson({"states", "ls", "--limit", "2"}).size(), 2u);
  EXPECT_EQ(RunJson({"states", "ls", "--parent", root}).size(), 2u);
  const Json shown = RunJson({"states", "show", child});
  EXPECT_EQ(shown["parent_id"], root);
  EXPECT_EQ(shown["transcript"][0]["text"], " ran");
  const std::string tree = Run({"states", "tree"}).out;
  EXPECT_LT(tree.find(root), tree.find("├─ " + child));
  EXPECT_LT(tree.find("├─ " + child), tree.find("└─ " + other));
  EXPECT_THAT(tree, HasSubstr("<- s"));
  const Json verified = RunJson({"states", "verify"});
  ASSERT_EQ(verified.size(), 3u);
  EXPECT_GT(verified[0]["verified_bytes"], 0);
  EXPECT_THAT(Run({"states", "ls"}).out, HasSubstr(child));
}

TEST_F(ServerCommandsTest, ExportAndImport) {
  const Json made = RunJson({"generate", "The king", "--max-tokens", "8", "--seed", "3"});
  const std::string file = dir_.File("king.state");
  ASSERT_EQ(Run({"states", "export", made["state_id"], "--out", file}).exit_code, 0);
  const Json imported = RunJson({"states", "import", file, "--session", "copy"});
  EXPECT_NE(imported["state_id"], made["state_id"]);
  const auto go_on = [&](const std::string& id) {
    return RunJson({"generate", "--state", id, "", "--max-tokens", "8"})["token_ids"];
  };
  EXPECT_EQ(go_on(imported["state_id"]), go_on(made["state_id"]));

  std::string bytes = ReadFile(file);
  bytes[bytes.size() / 2] ^= 1;
  WriteFile(dir_.File("flipped"), bytes);
  EXPECT_EQ(Run({"states", "import", dir_.File("flipped")}).exit_code, 1);
  WriteFile(dir_.File("cut"), bytes.substr(0, bytes.size() / 2));
  EXPECT_EQ(Run({"states", "import", dir_.File("cut")}).exit_code, 1);
  EXPECT_EQ(Run({"states", "import", dir_.File("none")}).exit_code, 4);
  EXPECT_EQ(Run({"states", "export", made["state_id"], "--out", dir_.File("no/such")}).exit_code,
            4);
  EXPECT_EQ(
      Run({"states", "export", "st_00000000000000000000000000", "--out", dir_.File("x")}).exit_code,
      1);
  EXPECT_NE(access(dir_.File("x").c_str(), F_OK), 0);
}

TEST_F(ServerCommandsTest, Score) {
  const Json json = RunJson({"score", "Once upon a time"});
  ASSERT_EQ(json["scores"].size(), 1u);
  const size_t num_tokens = json["token_ids"].size();
  EXPECT_EQ(json["scores"][0]["logprobs"].size(), num_tokens - 1);
  EXPECT_LT(json["scores"][0]["total_logprob"], 0);
  EXPECT_THAT(Run({"score", "Once upon a time"}).out, HasSubstr("(from nothing)"));
}

TEST_F(ServerCommandsTest, ChatKeepsASessionForksAndRewinds) {
  const std::string script =
      "My name is Tom.\n/save start\n/fork b\nI like cats.\n/rewind\n/where\n/nonsense\n/history\n"
      "/quit\n";
  const ProcessResult chat =
      Run({"chat", "--session", "a", "--max-tokens", "12"}, {.stdin_text = script});
  ASSERT_EQ(chat.exit_code, 0) << chat.err;
  EXPECT_THAT(chat.err, HasSubstr("restored 0 tokens"));
  EXPECT_THAT(chat.err, HasSubstr("as start"));
  EXPECT_THAT(chat.err, HasSubstr("session b"));
  EXPECT_THAT(chat.err, HasSubstr("there is no /nonsense"));
  EXPECT_THAT(chat.out, HasSubstr("My name is Tom."));
  EXPECT_THAT(chat.out, Not(HasSubstr("I like cats.")));
  const Json a = RunJson({"sessions", "show", "a"});
  const Json b = RunJson({"sessions", "show", "b"});
  EXPECT_EQ(a["head"]["id"], b["head"]["id"]);
  EXPECT_EQ(a["head"]["pinned"], true);
  EXPECT_EQ(a["head"]["labels"]["name"], "start");
  EXPECT_EQ(RunJson({"states", "ls", "--parent", b["head"]["id"]}).size(), 1u);
}

TEST_F(ServerCommandsTest, ChatWithoutASessionGoesOnFromItsStates) {
  const ProcessResult chat =
      Run({"chat", "--max-tokens", "8"}, {.stdin_text = "Hello.\nMore.\n/rewind\n/rewind 7\n"});
  EXPECT_EQ(chat.exit_code, 1);
  EXPECT_THAT(chat.err, HasSubstr("there are only 1 states"));
  EXPECT_EQ(RunJson({"sessions", "ls"}).size(), 0u);
  EXPECT_EQ(RunJson({"states", "ls"}).size(), 2u);
}

TEST_F(ServerCommandsTest, KillHardAndResumeById) {
  const Json first = RunJson({"generate", "Once upon a time", "--max-tokens", "12", "--seed", "1",
                              "--ignore-eos", "--logprobs", "0"});
  const auto go_on = [&] {
    return RunJson({"generate", "--state", first["state_id"], "", "--max-tokens", "12",
                    "--ignore-eos", "--logprobs", "0"});
  };
  const Json before = go_on();
  server_->KillHard();
  EXPECT_EQ(Run({"states", "ls"}).exit_code, 3);
  ASSERT_TRUE(server_->Restart().ok());
  const Json after = go_on();
  EXPECT_EQ(after["token_ids"], before["token_ids"]);
  EXPECT_EQ(after["logprobs"], before["logprobs"]);
  EXPECT_EQ(after["usage"]["restored_tokens"], first["state"]["position"]);
  EXPECT_EQ(after["usage"]["prefill_tokens"], 1);
}

TEST_F(ServerCommandsTest, InterruptCancelsTheCall) {
  auto client = BackgroundProcess::Start(
      {VivariumBinary(), "generate", "Once", "--max-tokens", "1000000", "--ignore-eos", "--session",
       "long", "--stop", "\x01never", "--server", server_->address()},
      dir_.File("log"));
  ASSERT_TRUE(client.ok());
  std::this_thread::sleep_for(std::chrono::seconds(1));
  (*client)->Signal(SIGINT);
  EXPECT_EQ((*client)->Wait(std::chrono::seconds(30)).value_or(-1), 130);
  EXPECT_THAT(ReadFile(dir_.File("log")), HasSubstr("interrupted"));
  // What was asked to be saved at the end is saved at the point reached.
  for (int i = 0; i < 100 && Run({"sessions", "show", "long"}).exit_code != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_GT(RunJson({"sessions", "show", "long"})["head"]["position"], 1);
}

TEST_F(ServerCommandsTest, SigtermDrainsAndExitsZero) {
  ASSERT_TRUE(server_->Restart({"--threads", "1", "--drain-seconds", "1"}).ok());
  auto client =
      BackgroundProcess::Start({VivariumBinary(), "generate", "Once", "--max-tokens", "1000000",
                                "--ignore-eos", "--json", "--server", server_->address()},
                               dir_.File("log"));
  ASSERT_TRUE(client.ok());
  std::this_thread::sleep_for(std::chrono::seconds(1));
  server_->RequestStop();
  const auto line = (*client)->ReadLine(std::chrono::seconds(30));
  ASSERT_TRUE(line.ok()) << line.status() << ReadFile(dir_.File("log"));
  EXPECT_EQ((*client)->Wait(std::chrono::seconds(30)).value_or(-1), 0);
  EXPECT_EQ(server_->WaitForExit(std::chrono::seconds(60)).value_or(-1), 0);
  EXPECT_EQ(server_->RestOfStdout(), "");
  const Json drained = Json::parse(*line);
  EXPECT_EQ(drained["finish_reason"], "drained");
  ASSERT_TRUE(server_->Restart().ok());
  const Json resumed =
      RunJson({"generate", "--state", drained["state_id"], "", "--max-tokens", "3"});
  EXPECT_EQ(resumed["usage"]["restored_tokens"], drained["state"]["position"]);
}

TEST(ServeTest, SaysWhyItCannotStart) {
  TempDir dir;
  const auto missing =
      RunProcess({VivariumBinary(), "serve", "--model", dir.path(), "--store", dir.File("s"),
                  "--listen", "127.0.0.1:0", "--metrics-listen", ""});
  EXPECT_EQ(missing->exit_code, 4);
  EXPECT_THAT(missing->err, HasSubstr(dir.path()));
  EXPECT_EQ(missing->out, "");
  auto server = ServerProcess::Start({.args = {"--threads", "1"}});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto taken = RunProcess({VivariumBinary(), "serve", "--store", dir.File("s"), "--listen",
                                 (*server)->address(), "--metrics-listen", ""});
  EXPECT_EQ(taken->exit_code, 4);
  EXPECT_THAT(taken->err, HasSubstr((*server)->address()));
}

// The program in cli/README.md, on a state of the bundled model.
TEST_F(ServerCommandsTest, SafetensorsOpenInPython) {
  if (std::system("python3 -c '' 2>/dev/null") != 0) GTEST_SKIP() << "there is no python3";
  const Json made = RunJson({"generate", "Once upon", "--max-tokens", "3"});
  const std::string id = made["state_id"];
  const std::string file = dir_.File("state.safetensors");
  const Json written = RunJson({"states", "export", id, "--format", "safetensors", "--out", file});
  EXPECT_EQ(written["bytes"], ReadFile(file).size());
  const std::string readme = ReadFile(RootDir() + "/cli/README.md");
  const std::string fence = "```python\n";
  const size_t begin = readme.find(fence);
  ASSERT_NE(begin, std::string::npos);
  const size_t code = begin + fence.size();
  WriteFile(dir_.File("load.py"), readme.substr(code, readme.find("```", code) - code));
  const auto result = RunProcess({"/usr/bin/env", "python3", dir_.File("load.py"), file}, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->exit_code, 0) << result->err;
  EXPECT_THAT(result->out, HasSubstr(id));
  EXPECT_THAT(result->out, HasSubstr("layers.0.conv"));
  EXPECT_THAT(result->out, HasSubstr("layers.0.ssm"));
}

}  // namespace
}  // namespace vivarium::test
