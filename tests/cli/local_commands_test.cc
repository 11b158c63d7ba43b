// The commands that need no server, as processes: exit codes, outputs, goldens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "tests/support/npy.h"
#include "tests/support/process.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_environment.h"

namespace vivarium::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

const std::string kGoldens = RootDir() + "/tests/data/goldens/";

ProcessResult Vivarium(std::vector<std::string> args, const ProcessOptions& options = {}) {
  args.insert(args.begin(), VivariumBinary());
  auto result = RunProcess(args, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : ProcessResult();
}

size_t NumLines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

TEST(UsageTest, WrongUseIsTwoAndOneSentence) {
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"nonsense"},
           {"states"},
           {"states", "show"},
           {"generate"},
           {"generate", "a", "b"},
           {"generate", "a", "--file", "b"},
           {"generate", "a", "--save", "sometimes"},
           {"generate", "a", "--temperature", "hot"},
           {"generate", "a", "--logit-bias", "x"},
           {"generate", "--state", "a", "--fresh"},
           {"score"},
           {"logits", "--tokens", "1"},
           {"sessions", "rewind", "x"},
           {"sessions", "rewind", "x", "--steps", "1", "--to", "2"},
           {"sessions", "rewind", "x", "--to", "start"},
           {"tokenize", "a", "--file", "b"},
           {"serve", "--max-slots", "0"},
           {"serve", "--listen", "0.0.0.0:0"},
           {"serve", "--no-such-flag"}}) {
    const ProcessResult result = Vivarium(args);
    const std::string shown = absl::StrJoin(args, " ");
    EXPECT_EQ(result.exit_code, 2) << shown;
    EXPECT_EQ(result.out, "") << shown;
    EXPECT_THAT(result.err, StartsWith("vivarium: ")) << shown;
    EXPECT_EQ(NumLines(result.err), 1u) << shown << ": " << result.err;
  }
}

TEST(UsageTest, EveryCommandExplainsItself) {
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{},
                                             {"serve"},
                                             {"generate"},
                                             {"chat"},
                                             {"score"},
                                             {"states"},
                                             {"states", "ls"},
                                             {"states", "export"},
                                             {"sessions", "create"},
                                             {"model", "inspect"},
                                             {"model", "quantize"},
                                             {"tokenize"},
                                             {"logits"},
                                             {"config", "check"},
                                             {"version"}}) {
    std::vector<std::string> args = command;
    args.push_back("--help");
    const ProcessResult result = Vivarium(args);
    EXPECT_EQ(result.exit_code, 0) << absl::StrJoin(args, " ");
    EXPECT_THAT(
        result.out,
        HasSubstr(absl::StrJoin(
            command, " ", [](std::string* out, const std::string& word) { out->append(word); })));
    EXPECT_THAT(result.out, HasSubstr("Usage: vivarium"));
    EXPECT_THAT(result.out, ::testing::Not(HasSubstr("\n\n\n")));
    EXPECT_EQ(result.err, "");
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(result.out, '\n'))) {
      EXPECT_LE(line.size(), 140u) << absl::StrJoin(args, " ") << ": " << line;
    }
  }
}

TEST(UsageTest, NobodyListening) {
  // Port 1 of this machine: nothing listens there.
  const ProcessResult result = Vivarium({"states", "ls", "--server", "127.0.0.1:1"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("no server answers at 127.0.0.1:1"));
  const ProcessResult by_environment =
      Vivarium({"generate", "a"}, {.env = {"VIVARIUM_SERVER=127.0.0.1:2"}});
  EXPECT_EQ(by_environment.exit_code, 3);
  EXPECT_THAT(by_environment.err, HasSubstr("127.0.0.1:2"));
}

TEST(CompleteTest, SaysWhatMayFollow) {
  const std::string top = Vivarium({"complete"}).out;
  EXPECT_THAT(top, HasSubstr("serve\tServe a model\n"));
  EXPECT_THAT(top, HasSubstr("--help\t"));
  EXPECT_THAT(Vivarium({"complete", "states"}).out, HasSubstr("verify\t"));
  const std::string flags = Vivarium({"complete", "generate", "text", "--json"}).out;
  EXPECT_THAT(flags, HasSubstr("--max-tokens\t"));
  EXPECT_THAT(flags, ::testing::Not(HasSubstr("serve\t")));
}

TEST(ManPageTest, NamesEveryCommand) {
  const std::string page = ReadFile(RootDir() + "/cli/vivarium.1");
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(Vivarium({"complete"}).out, '\n'))) {
    if (line.empty() || line.front() == '-') continue;
    const std::string name = line.substr(0, line.find('\t'));
    EXPECT_THAT(page, ::testing::ContainsRegex("\n\\.(B|BI|BR) \"?" + name)) << name;
  }
}

TEST(VersionTest, TextAndJson) {
  EXPECT_THAT(Vivarium({"version"}).out, StartsWith("vivarium 0."));
  EXPECT_TRUE(Json::parse(Vivarium({"version", "--json"}).out).contains("cpu_isa"));
}

TEST(TokenizeTest, JsonArrayFromTextAndFileAndBack) {
  TempDir dir;
  const std::string text = "Once upon a time there was a dog.\n\"Héllo\" 🐍 said <|end|>";
  WriteFile(dir.File("text"), text);
  const ProcessResult from_file =
      Vivarium({"tokenize", "--model", BundledModelDir(), "--file", dir.File("text"), "--json"});
  ASSERT_EQ(from_file.exit_code, 0) << from_file.err;
  const std::vector<int32_t> ids = Json::parse(from_file.out);
  EXPECT_GT(ids.size(), 5u);
  EXPECT_EQ(Vivarium({"tokenize", text, "--json"}).out, from_file.out);
  const ProcessResult from_stdin =
      Vivarium({"tokenize", "--file", "-", "--json"}, {.stdin_text = text});
  EXPECT_EQ(from_stdin.out, from_file.out);

  WriteFile(dir.File("ids"), from_file.out);
  const ProcessResult back = Vivarium({"tokenize", "--decode", "@" + dir.File("ids"), "--json"});
  EXPECT_EQ(Json::parse(back.out), text);
  const std::vector<int32_t> special =
      Json::parse(Vivarium({"tokenize", "<|end|>", "--special", "--json"}).out);
  EXPECT_EQ(special.size(), 1u);
}

TEST(TokenizeTest, NeedsOnlyTokenizerJson) {
  TempDir dir;
  WriteFile(dir.File("tokenizer.json"), ReadFile(BundledModelDir() + "/tokenizer.json"));
  EXPECT_EQ(Vivarium({"tokenize", "--model", dir.path(), "a dog", "--json"}).out,
            Vivarium({"tokenize", "a dog", "--json"}).out);
  const ProcessResult missing = Vivarium({"tokenize", "--model", dir.File("none"), "a"});
  EXPECT_EQ(missing.exit_code, 4);
  EXPECT_THAT(missing.err, HasSubstr(dir.File("none")));
}

// Largest absolute difference; infinite when the shapes differ or a value is not a number.
float MaxAbsDiff(const NpyArray& actual, const NpyArray& expected) {
  if (actual.shape != expected.shape) return INFINITY;
  float max_diff = 0;
  for (size_t i = 0; i < actual.values.size(); ++i) {
    const float diff = std::fabs(actual.values[i] - expected.values[i]);
    if (!(diff <= max_diff)) max_diff = std::isnan(diff) ? INFINITY : diff;
  }
  return max_diff;
}

// The golden's conv_state has one column more, the oldest, which no next token needs.
NpyArray WithoutOldestColumn(const NpyArray& golden) {
  NpyArray result{{golden.shape[0], golden.shape[1] - 1}, {}};
  for (int64_t row = 0; row < golden.shape[0]; ++row) {
    const auto begin = golden.values.begin() + row * golden.shape[1];
    result.values.insert(result.values.end(), begin + 1, begin + golden.shape[1]);
  }
  return result;
}

class LogitsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(LogitsTest, AgreeWithTheGoldens) {
  const std::string model = kGoldens + std::string(GetParam());
  const Json golden = Json::parse(ReadFile(model + "/golden.json"));
  TempDir dir;
  for (size_t s = 0; s < golden["sequences"].size(); ++s) {
    const std::vector<int32_t> tokens = golden["sequences"][s]["tokens"];
    WriteFile(dir.File("tokens"), absl::StrJoin(tokens, ","));
    // A file for the long ones, a list for the short, chunks that don't divide the length.
    const std::string list =
        tokens.size() > 20 ? "@" + dir.File("tokens") : absl::StrJoin(tokens, ",");
    const ProcessResult result = Vivarium(
        {"logits", "--model", model, "--tokens", list, "--weights", "f32", "--threads", "1",
         "--prefill-chunk", "50", "--out", dir.File("l.npy"), "--state-out", dir.File("state")});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string prefix = absl::StrCat(model, "/golden/seq", s);
    EXPECT_LT(MaxAbsDiff(ReadNpy(dir.File("l.npy")), ReadNpy(prefix + ".logits.npy")), 5e-4f);
    for (int layer = 0; layer < 3; ++layer) {
      const std::string mine = absl::StrCat(dir.File("state"), "/layer", layer);
      const std::string theirs = absl::StrCat(prefix, ".layer", layer);
      EXPECT_LT(MaxAbsDiff(ReadNpy(mine + ".ssm_state.npy"), ReadNpy(theirs + ".ssm_state.npy")),
                5e-5f);
      EXPECT_LT(MaxAbsDiff(ReadNpy(mine + ".conv_state.npy"),
                           WithoutOldestColumn(ReadNpy(theirs + ".conv_state.npy"))),
                5e-5f);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Models, LogitsTest,
                         ::testing::Values("tiny-mamba", "tiny-mamba-bf16",
                                           "tiny-mamba-statespaces-naming"));

TEST(LogitsErrorTest, OutOfRangeAndMissing) {
  TempDir dir;
  const std::string model = kGoldens + "tiny-mamba";
  const ProcessResult range =
      Vivarium({"logits", "--model", model, "--tokens", "1,320", "--out", dir.File("l.npy")});
  EXPECT_EQ(range.exit_code, 2);
  EXPECT_THAT(range.err, HasSubstr("number 2 is 320, expected less than 320"));
  const ProcessResult missing =
      Vivarium({"logits", "--model", dir.path(), "--tokens", "1", "--out", dir.File("l.npy")});
  EXPECT_EQ(missing.exit_code, 4);
  EXPECT_THAT(missing.err, HasSubstr(dir.path()));
  const ProcessResult device = Vivarium({"logits", "--model", model, "--tokens", "1", "--out",
                                         dir.File("l.npy"), "--device", "abacus"});
  EXPECT_EQ(device.exit_code, 4);
  EXPECT_THAT(device.err, HasSubstr("abacus"));
}

TEST(ModelInspectTest, JsonAndText) {
  const std::string model = kGoldens + "tiny-mamba-bf16";
  const ProcessResult result = Vivarium({"model", "inspect", model, "--json", "--tensors"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["num_layers"], 3);
  EXPECT_EQ(json["d_model"], 96);
  EXPECT_EQ(json["dt_rank"], 5);
  EXPECT_EQ(json["padded_vocab_size"], 512);
  EXPECT_EQ(json["tie_embeddings"], false);
  EXPECT_EQ(json["fingerprint"].get<std::string>().size(), 32u);
  EXPECT_EQ(json["tensors"].size(), json["num_tensors"].get<size_t>());
  EXPECT_FALSE(json.contains("tokenizer"));
  EXPECT_TRUE(Json::parse(Vivarium({"model", "inspect", "--json"}).out).contains("tokenizer"));
  EXPECT_THAT(Vivarium({"model", "inspect", model}).out, HasSubstr("d_model              96"));
  EXPECT_EQ(Vivarium({"model", "inspect", "/no/such"}).exit_code, 4);
}

TEST(ModelQuantizeTest, WritesADirectoryThatLoads) {
  const TempDir directory;
  const std::string destination = directory.path() + "/int8";
  const std::string source = kGoldens + "tiny-mamba-bf16";
  const ProcessResult result = Vivarium({"model", "quantize", source, destination, "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["num_quantized"], 7);  // two of each of three layers, and the head
  EXPECT_LT(json["weight_bytes"].get<size_t>(), json["source_bytes"].get<size_t>());
  const Json inspected = Json::parse(Vivarium({"model", "inspect", destination, "--json"}).out);
  EXPECT_EQ(inspected["fingerprint"], json["fingerprint"]);
  EXPECT_TRUE(inspected["parameters_by_dtype"].contains("int8"));
  const ProcessResult again = Vivarium({"model", "quantize", source, destination});
  EXPECT_EQ(again.exit_code, 4);
  EXPECT_THAT(again.err, HasSubstr("expected a directory that does not exist yet"));
  EXPECT_THAT(Vivarium({"model", "quantize", destination, destination + "2"}).err,
              HasSubstr("quantised already"));
  EXPECT_THAT(Vivarium({"model", "quantize", source, destination + "3"}).out,
              HasSubstr("7 matrices as int8"));
}

TEST(ModelInspectTest, SameWeightsSameFingerprint) {
  const auto fingerprint = [](const char* name) {
    return Json::parse(
        Vivarium({"model", "inspect", kGoldens + std::string(name), "--json"}).out)["fingerprint"];
  };
  EXPECT_EQ(fingerprint("tiny-mamba"), fingerprint("tiny-mamba-statespaces-naming"));
  EXPECT_NE(fingerprint("tiny-mamba"), fingerprint("tiny-mamba-bf16"));
}

TEST(ConfigCheckTest, ExitCodesAndSentences) {
  TempDir dir;
  WriteFile(dir.File("good"), "max-slots = 4\n");
  WriteFile(dir.File("bad"), "max-slots = 4\nthreads = 1000\n");
  EXPECT_EQ(Vivarium({"config", "check", dir.File("good")}).exit_code, 0);
  const ProcessResult bad = Vivarium({"config", "check", dir.File("bad")});
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_EQ(bad.err, "vivarium: " + dir.File("bad") + ":2: threads is 1000; expected 0 .. 256\n");
  EXPECT_EQ(Vivarium({"serve", "--config", dir.File("bad")}).err, bad.err);
  EXPECT_EQ(Vivarium({"config", "check", dir.File("none")}).exit_code, 2);
}

// A store that a server left: looked at, backed up, restored, verified; damage is found.
TEST(StoreCommandsTest, VerifyBackupAndRestore) {
  TempDir dir;
  const std::string store = dir.path() + "/store";
  EXPECT_EQ(Vivarium({"store", "stats", "--store", store}).exit_code, 4);
  auto server =
      ServerProcess::Start({.store_dir = store, .args = {"--threads", "1", "--codec", "bf16"}});
  ASSERT_TRUE(server.ok()) << server.status();
  for (const char* codec : {"raw", "zstd", ""}) {
    std::vector<std::string> args = {"generate",  "Once", "--max-tokens", "4",
                                     "--session", "s",    "--server",     (*server)->address()};
    if (*codec != '\0') args.insert(args.end(), {"--codec", codec});
    const ProcessResult made = Vivarium(args);
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  const ProcessResult shown = Vivarium({"sessions", "show", "s", "--server", (*server)->address()});
  EXPECT_THAT(shown.out, HasSubstr("bf16"));
  EXPECT_THAT(shown.out, HasSubstr("off by up to"));
  const ProcessResult busy = Vivarium({"store", "verify", "--store", store});
  EXPECT_EQ(busy.exit_code, 4);
  EXPECT_THAT(busy.err, HasSubstr("open already"));
  server->reset();
  const auto run_json = [&](std::vector<std::string> args) {
    args.push_back("--json");
    const ProcessResult result = Vivarium(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  };
  EXPECT_EQ(run_json({"store", "stats", "--store", store})["states"], 3);
  EXPECT_EQ(run_json({"store", "verify", "--store", store})["num_damaged"], 0);
  const std::string backups = dir.path() + "/backups";
  for (int i = 0; i < 2; ++i) {
    const ProcessResult made = Vivarium({"store", "backup", "--store", store, "--to", backups});
    EXPECT_EQ(made.exit_code, 0) << made.err;
  }
  EXPECT_EQ(NumLines(Vivarium({"store", "backups", backups}).out), 3u);
  for (const char* command : {"compact", "gc"}) {
    EXPECT_EQ(Vivarium({"store", command, "--store", store}).exit_code, 0);
  }
  const std::string restored = dir.path() + "/restored";
  const Json report =
      run_json({"store", "restore", "--from", backups, "--store", restored, "--id", "1"});
  EXPECT_EQ(report["states"], 3);
  EXPECT_EQ(report["num_damaged"], 0);
  EXPECT_EQ(Vivarium({"store", "restore", "--from", backups, "--store", restored}).exit_code, 4);
}

}  // namespace
}  // namespace vivarium::test
