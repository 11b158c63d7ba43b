// `vivarium bench` against a real server process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"

namespace vivarium::test {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

class BenchServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start({.args = {"--threads", "1"}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  ProcessResult Run(std::vector<std::string> args) {
    args.insert(args.begin(), {VivariumBinary(), "bench"});
    args.insert(args.end(), {"--server", server_->address(), "--quiet"});
    auto result = RunProcess(args);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : ProcessResult();
  }

  Json RunJson(std::vector<std::string> args) {
    args.push_back("--json");
    const ProcessResult result = Run(std::move(args));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    Json json = Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(json.is_discarded()) << result.out;
    return json;
  }

  std::unique_ptr<ServerProcess> server_;
  TempDir dir_;
};

TEST_F(BenchServerTest, AClosedLoopCountsEveryTokenAndWritesItsFiles) {
  const std::string records = dir_.path() + "/records.jsonl", html = dir_.path() + "/r.html",
                    output = dir_.path() + "/s.json";
  const Json json = RunJson({"--users",         "3",
                             "--requests",      "12",
                             "--mix",           "fresh=2,long=1",
                             "--input-tokens",  "8:16",
                             "--long-tokens",   "64",
                             "--output-tokens", "6",
                             "--slo",           "ttft=100000",
                             "--records",       records,
                             "--html",          html,
                             "--output",        output});
  EXPECT_EQ(json["schema"], "vivarium.bench/1");
  const Json& load = json["loads"][0];
  EXPECT_EQ(load["requests"]["ok"], 12);
  EXPECT_EQ(load["requests"]["errors"], 0);
  EXPECT_EQ(load["tokens"]["output"], 72);
  EXPECT_EQ(load["tokens"]["restored"], 0);
  EXPECT_EQ(load["latency_ms"]["ttft"]["count"], 12);
  EXPECT_GT(load["throughput"]["output_tok_s"], 0);
  EXPECT_EQ(load["goodput"]["share"], 1.0);
  std::ifstream in(records);
  int num_lines = 0;
  for (std::string line; std::getline(in, line); ++num_lines) {
    EXPECT_EQ(Json::parse(line)["output_tokens"], 6);
  }
  EXPECT_EQ(num_lines, 12);
  EXPECT_TRUE(std::ifstream(html).good());
  auto compared = RunProcess({VivariumBinary(), "bench", "compare", output, output, "--json"});
  ASSERT_TRUE(compared.ok());
  EXPECT_EQ(compared->exit_code, 0) << compared->err;
}

TEST_F(BenchServerTest, EveryScenarioRunsAndLeavesNoSessionBehind) {
  const Json json = RunJson({"--users",
                             "4",
                             "--requests",
                             "40",
                             "--mix",
                             "fresh,resume,fork,thread,reconnect",
                             "--input-tokens",
                             "8",
                             "--context-tokens",
                             "32",
                             "--output-tokens",
                             "8",
                             "--fork-children",
                             "2",
                             "--threads",
                             "2",
                             "--states",
                             "2",
                             "--cancel-rate",
                             "0.1",
                             "--slow-rate",
                             "0.1",
                             "--slow-read-ms",
                             "1"});
  const Json& load = json["loads"][0];
  EXPECT_EQ(load["requests"]["errors"], 0) << load["errors"];
  for (const char* scenario : {"fresh", "resume", "fork", "thread", "reconnect"}) {
    EXPECT_TRUE(load["by_scenario"].contains(scenario)) << scenario << load["by_scenario"];
  }
  EXPECT_GT(load["tokens"]["restored"], 0);
  EXPECT_GT(load["latency_ms"]["resume_ttft"]["count"], 0);
  auto sessions =
      RunProcess({VivariumBinary(), "sessions", "ls", "--json", "--server", server_->address()});
  ASSERT_TRUE(sessions.ok());
  EXPECT_THAT(sessions->out, ::testing::Not(HasSubstr("bench-")));
}

TEST_F(BenchServerTest, AnOpenLoopSendsWhatIsDueAndATraceReplays) {
  const Json open = RunJson({"--rate", "20", "--arrivals", "constant", "--requests", "10",
                             "--input-tokens", "4", "--output-tokens", "2", "--repeat", "2"});
  ASSERT_EQ(open["loads"].size(), 2u);
  EXPECT_EQ(open["loads"][1]["requests"]["ok"], 10);
  EXPECT_GE(open["loads"][0]["wall_s"], 0.45);
  EXPECT_EQ(open["aa_spread"].size(), 1u);
  const std::string trace = dir_.path() + "/trace.jsonl";
  std::ofstream(trace)
      << R"({"timestamp": 0, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]})"
      << "\n"
      << R"({"timestamp": 5000, "input_length": 700, "output_length": 2, "hash_ids": [1, 3]})"
      << "\n";
  const Json replay = RunJson({"--trace", trace, "--trace-speed", "2"});
  EXPECT_EQ(replay["loads"][0]["requests"]["ok"], 2) << replay["loads"][0]["errors"];
  EXPECT_GE(replay["loads"][0]["wall_s"], 2.4);
  EXPECT_EQ(replay["loads"][0]["tokens"]["restored"], 512);
}

// The same requests by a client that shares no code with ours. Medians of both must agree within
// the noise of a busy machine: what this finds is a client that counts or times the wrong thing.
TEST_F(BenchServerTest, AnIndependentClientSeesTheSame) {
  auto found = RunProcess({"/usr/bin/python3", "-c", "import grpc, google.protobuf"});
  if (!found.ok() || found->exit_code != 0) {
    GTEST_SKIP() << "needs Debian's python3-grpcio and python3-protobuf";
  }
  const std::string root = VIVARIUM_SOURCE_DIR;
  auto other =
      RunProcess({"/usr/bin/python3", root + "/tests/cli/bench/independent_client.py",
                  server_->address(), root + "/proto", dir_.path(), "12", "64", "32", "2048"});
  ASSERT_TRUE(other.ok());
  ASSERT_EQ(other->exit_code, 0) << other->err;
  const Json theirs = Json::parse(other->out);
  const Json load = RunJson({"--users", "1", "--connections", "1", "--requests", "12",
                             "--input-tokens", "64", "--output-tokens", "32"})["loads"][0];
  EXPECT_EQ(load["tokens"]["output"], theirs["output_tokens"]);
  const auto expect_near = [](double ours, double other_value, const char* what) {
    EXPECT_LT(ours, 3 * other_value + 2) << what;
    EXPECT_LT(other_value, 3 * ours + 2) << what;
  };
  expect_near(load["latency_ms"]["ttft"]["p50"], theirs["ttft_p50_ms"], "TTFT p50");
  expect_near(load["latency_ms"]["tpot"]["p50"], theirs["tpot_p50_ms"], "TPOT p50");
  expect_near(load["throughput"]["output_tok_s"], theirs["output_tok_s"], "output tok/s");
}

// The size of a screenshot of `page` in bytes, which grows with what is to be seen; 0 = none.
uintmax_t ScreenshotBytes(const std::string& page, const std::string& dir) {
  const std::string png = dir + "/page.png";
  auto result = RunProcess({"/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu",
                            "--window-size=1200,1800", "--user-data-dir=" + dir + "/chromium",
                            "--screenshot=" + png, "file://" + page});
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(png, error);
  std::filesystem::remove(png, error);
  return result.ok() && result->exit_code == 0 && !error ? bytes : 0;
}

TEST_F(BenchServerTest, ABrowserDrawsTheReport) {
  if (!std::filesystem::exists("/usr/bin/chromium")) GTEST_SKIP() << "needs Debian's chromium";
  const std::string html = dir_.path() + "/report.html", empty = dir_.path() + "/empty.html";
  RunJson({"--users", "2", "--requests", "20", "--input-tokens", "8", "--output-tokens", "8",
           "--html", html});
  // The same page without what is drawn.
  std::ifstream in(html);
  std::string page((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  for (size_t at; (at = page.find("<polyline")) != std::string::npos;) {
    page.erase(at, page.find("/>", at) + 2 - at);
  }
  std::ofstream(empty) << page;
  const uintmax_t drawn = ScreenshotBytes(html, dir_.path());
  const uintmax_t without = ScreenshotBytes(empty, dir_.path());
  EXPECT_GT(without, 10'000u) << "no page was drawn";
  EXPECT_GT(drawn, without + 1'000) << "no curves were drawn";
}

TEST_F(BenchServerTest, BadOptionsAndAnAbsentServerExitAsDocumented) {
  const ProcessResult bad = Run({"--users", "0"});
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_THAT(bad.err, HasSubstr("--users: '0' is not a number in 1"));
  const ProcessResult both = Run({"--users", "1", "--rate", "2"});
  EXPECT_EQ(both.exit_code, 2);
  auto absent = RunProcess({VivariumBinary(), "bench", "--server", "127.0.0.1:1"});
  ASSERT_TRUE(absent.ok());
  EXPECT_EQ(absent->exit_code, 3) << absent->err;
}

}  // namespace
}  // namespace vivarium::test
