// The parts of the command line that need no process: parsers, writers, settings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "cli/config_file.h"
#include "cli/flags.h"
#include "cli/npy.h"
#include "cli/output.h"
#include "cli/output_file.h"
#include "cli/proto_json.h"
#include "cli/serve_flags.h"
#include "cli/token_ids.h"
#include "tests/support/npy.h"
#include "tests/support/temp_dir.h"
#include "vivarium/v1/generation.pb.h"

namespace vivarium::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(TokenIdsTest, ReadsWhatPeopleAndTokenizeWrite) {
  EXPECT_THAT(*ParseTokenIds("1,2,3"), ElementsAre(1, 2, 3));
  EXPECT_THAT(*ParseTokenIds(" [4, 5,\n6]\n"), ElementsAre(4, 5, 6));
  EXPECT_THAT(*ParseTokenIds("7 8\t9\r\n"), ElementsAre(7, 8, 9));
  EXPECT_THAT(*ParseTokenIds("2147483647"), ElementsAre(2147483647));
  EXPECT_THAT(*ParseTokenIds(""), IsEmpty());
  EXPECT_THAT(*ParseTokenIds("[]"), IsEmpty());
}

TEST(TokenIdsTest, NamesWhatIsNoId) {
  for (const char* bad : {"1,x", "-1", "2147483648", "1.5", "[1,2", "1;2", "0x10", "1]"}) {
    const auto ids = ParseTokenIds(bad);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_THAT(std::string(ParseTokenIds("1,2,x3").status().message()),
              HasSubstr("number 3 is 'x3', expected an integer from 0 to 2147483647"));
}

TEST(TokenIdsTest, FileOrList) {
  test::TempDir dir;
  test::WriteFile(dir.File("ids"), "[10, 11]\n");
  EXPECT_THAT(*ReadTokenIds("@" + dir.File("ids")), ElementsAre(10, 11));
  const auto missing = ReadTokenIds("@" + dir.File("none"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(dir.File("none")));
}

TEST(NpyTest, AnotherReaderReadsIt) {
  test::TempDir dir;
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{3}, {2, 3}, {1, 1, 6}, {0, 5}}) {
    size_t size = 1;
    for (int64_t dimension : shape) size *= static_cast<size_t>(dimension);
    std::vector<float> values;
    for (size_t i = 0; i < size; ++i) values.push_back(static_cast<float>(i) - 1.5f);
    ASSERT_TRUE(WriteNpy(dir.File("a.npy"), shape, values).ok());
    const test::NpyArray array = test::ReadNpy(dir.File("a.npy"));
    EXPECT_EQ(array.shape, shape);
    EXPECT_EQ(array.values, values);
  }
  // The header's length keeps the data aligned to 64 bytes, as the format asks.
  EXPECT_EQ((test::ReadFile(dir.File("a.npy")).size()) % 64, 0u);
}

TEST(OutputFileTest, AppearsOnlyWhenWhole) {
  test::TempDir dir;
  const std::string path = dir.File("out");
  test::WriteFile(path, "old");
  {
    auto file = OutputFile::Create(path);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Write("half").ok());
    EXPECT_EQ(test::ReadFile(path), "old");
  }
  EXPECT_EQ(test::ReadFile(path), "old");
  EXPECT_NE(access((path + ".part").c_str(), F_OK), 0);
  auto file = OutputFile::Create(path);
  ASSERT_TRUE((*file)->Write("new").ok());
  ASSERT_TRUE((*file)->Finish().ok());
  EXPECT_EQ(test::ReadFile(path), "new");
  EXPECT_EQ(OutputFile::Create(dir.File("no/such")).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(SavePolicyTest, EveryForm) {
  v1::SavePolicy policy;
  ASSERT_TRUE(ParseSavePolicy("none", &policy).ok());
  EXPECT_FALSE(policy.at_end() || policy.at_prompt_end() || policy.every_tokens() > 0);
  ASSERT_TRUE(ParseSavePolicy("end,prompt,every=16", &policy).ok());
  EXPECT_TRUE(policy.at_end() && policy.at_prompt_end());
  EXPECT_EQ(policy.every_tokens(), 16u);
  EXPECT_FALSE(policy.has_keep_snapshots());
  ASSERT_TRUE(ParseSavePolicy("every=1000,keep=64", &policy).ok());
  EXPECT_EQ(policy.keep_snapshots(), 64u);
  EXPECT_FALSE(policy.at_end());
  ASSERT_TRUE(ParseSavePolicy("end", &policy).ok());
  EXPECT_FALSE(policy.has_every_tokens());  // the server's default
  ASSERT_TRUE(ParseSavePolicy("end,every=0", &policy).ok());
  EXPECT_TRUE(policy.has_every_tokens());  // not even then
  for (const char* bad : {"", "ends", "none,end", "every=15", "every=", "every=x", "end,", "keep=0",
                          "keep=65", "keep"}) {
    EXPECT_FALSE(ParseSavePolicy(bad, &policy).ok()) << bad;
  }
}

TEST(OutputTest, NumbersAndTables) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(3'145'728), "3.1 MB");
  EXPECT_EQ(FormatBytes(999'999'999), "1.0 GB");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  Table table({{"NAME"}, {"N", true}, {"LAST"}});
  table.Add({"é", "10", "x"});
  table.Add({"abcde", "9", "y"});
  EXPECT_EQ(table.Render(), "NAME    N  LAST\né      10  x\nabcde   9  y\n");
}

TEST(ProtoJsonTest, WhatScriptsExpect) {
  v1::Started started;
  started.set_restored_tokens(12345678901ull);
  started.mutable_queue_time()->set_seconds(1);
  started.mutable_queue_time()->set_nanos(500'000'000);
  started.mutable_sampling()->set_temperature(0.1f);
  (*started.mutable_sampling()->mutable_logit_bias())[7] = -2.5f;
  const Json json = ToJson(started);
  EXPECT_EQ(json["restored_tokens"], 12345678901ull);
  EXPECT_EQ(json["queue_time"], 1.5);
  EXPECT_EQ(json["session_created"], false);
  EXPECT_EQ(static_cast<float>(json["sampling"]["temperature"].get<double>()), 0.1f);
  EXPECT_EQ(json["sampling"]["logit_bias"]["7"], -2.5);
  EXPECT_FALSE(json["sampling"].contains("top_k"));  // optional and absent

  v1::State state;
  state.mutable_create_time()->set_seconds(0);
  auto* entry = state.add_transcript();
  entry->set_text("hé");
  entry->add_token_ids(3);
  const Json state_json = ToJson(state);
  EXPECT_EQ(state_json["create_time"], "1970-01-01T00:00:00Z");
  EXPECT_FALSE(state_json.contains("expire_time"));
  EXPECT_EQ(state_json["transcript"][0]["text"], "hé");
  EXPECT_EQ(state_json["transcript"][0]["token_ids"][0], 3);
  EXPECT_EQ(state_json["labels"], Json::object());

  v1::Finished finished;
  finished.set_reason(v1::LENGTH);
  EXPECT_EQ(ToJson(finished)["reason"], "length");
}

// What `config check` says about a file's text.
std::vector<std::string> Problems(const std::string& text) {
  test::TempDir dir;
  const std::string path = dir.File("c.toml");
  test::WriteFile(path, text);
  CLI::App app;
  ServeFlags flags;
  flags.Declare(&app);
  flags.config_file = path;
  std::vector<std::string> problems = flags.Resolve(&app);
  for (std::string& problem : problems) {
    const size_t at = problem.find(path);
    if (at != std::string::npos) problem.replace(at, path.size(), "FILE");
  }
  return problems;
}

TEST(ConfigFileTest, GoodOnes) {
  EXPECT_THAT(Problems(""), IsEmpty());
  EXPECT_THAT(Problems("# a comment\nlisten = \"127.0.0.1:0\"  # any port\nmax-slots = 16\n"
                       "insecure = true\nmodel = '/a#b'\nlog-level = \"off\"\n"),
              IsEmpty());
}

TEST(ConfigFileTest, EveryProblemNamesLineFieldValueAndWhatIsExpected) {
  EXPECT_THAT(Problems("\nmax-slots = 0\n"),
              ElementsAre("FILE:2: max-slots is 0; expected 1 .. 16384"));
  EXPECT_THAT(Problems("max-slots = \"8\"\n"),
              ElementsAre("FILE:1: max-slots is '8'; expected an integer or \"auto\""));
  EXPECT_THAT(Problems("max-slots = -1\n"),
              ElementsAre("FILE:1: max-slots is -1; expected an integer or \"auto\" in range"));
  EXPECT_THAT(Problems("threads = \"8\"\ndrain-seconds = 1.5\ninsecure = 1\nmodel = 3\n"),
              ::testing::UnorderedElementsAre("FILE:1: threads is '8'; expected an integer",
                                              "FILE:2: drain-seconds is 1.5; expected an integer",
                                              "FILE:3: insecure is 1; expected true or false",
                                              "FILE:4: model is 3; expected a string in quotes"));
  EXPECT_THAT(
      Problems("max-slots = 99999999999\n"),
      ElementsAre("FILE:1: max-slots is 99999999999; expected an integer or \"auto\" in range"));
  EXPECT_THAT(Problems("weights = \"int4\"\n"),
              ElementsAre(HasSubstr("FILE:1: weights is \"int4\"; expected one of")));
  EXPECT_THAT(Problems("listen = \"0.0.0.0:1\"\n"),
              ElementsAre(HasSubstr("FILE:1: listen is \"0.0.0.0:1\", which other machines")));
  EXPECT_THAT(Problems("max_slots = 1\n"),
              ElementsAre(HasSubstr("FILE:1: there is no setting max_slots; expected one of")));
  EXPECT_THAT(Problems("config = \"other\"\n"), ElementsAre(HasSubstr("no setting config")));
  EXPECT_THAT(Problems("[server]\nmax-slots = 1\n"),
              ElementsAre(HasSubstr("FILE:1: there is no setting server")));
  EXPECT_THAT(Problems("max-slots = 1\nmax-slots = 2\n"), ElementsAre(HasSubstr("FILE:2: ")));
  EXPECT_THAT(Problems("max-slots 1\n"), ElementsAre(HasSubstr("FILE:1: ")));
  EXPECT_THAT(Problems("model = \"\xff\"\n"), ElementsAre(HasSubstr("FILE:1: ")));
}

TEST(ConfigFileTest, ANumberMayBeLeftToTheServer) {
  EXPECT_THAT(Problems("max-slots = \"auto\"\n"), IsEmpty());
  const auto parsed = [](const std::string& line) {
    CLI::App app;
    ServeFlags flags;
    flags.Declare(&app);
    app.parse(line + " --store /s", false);
    EXPECT_THAT(flags.Resolve(&app), IsEmpty());
    return flags.options.max_slots;
  };
  EXPECT_EQ(parsed("--max-slots auto"), engine::kAutoSlots);
  EXPECT_EQ(parsed(""), engine::kAutoSlots);
  EXPECT_EQ(parsed("--max-slots 7"), 7);
  for (const char* bad : {"--max-slots=-1", "--max-slots automatic", "--threads auto"}) {
    CLI::App app;
    ServeFlags flags;
    flags.Declare(&app);
    EXPECT_THROW(app.parse(bad, false), CLI::ParseError) << bad;
  }
}

TEST(ConfigFileTest, SizeBound) {
  const std::string comment(kMaxConfigFileBytes - 1, '#');
  EXPECT_THAT(Problems(comment + "\n"), IsEmpty());
  EXPECT_THAT(Problems(comment + "\n\n"), ElementsAre(HasSubstr("expected at most 1048576")));
}

TEST(FlagsTest, PrefixReuseIsTheServersUnlessTurnedOff) {
  for (const bool is_off : {false, true}) {
    CLI::App app;
    SamplingFlags flags;
    flags.Declare(&app);
    app.parse(is_off ? "--no-prefix-reuse" : "", false);
    v1::GenerateRequest request;
    flags.Fill(&request);
    EXPECT_EQ(request.has_prefix_reuse(), is_off);
    EXPECT_FALSE(request.prefix_reuse());
  }
}

TEST(ConfigFileTest, FlagsComeBeforeTheFileAndTheFileBeforeDefaults) {
  test::TempDir dir;
  test::WriteFile(dir.File("c.toml"),
                  "max-slots = 3\nthreads = 2\nprefix-reuse = \"off\"\nlog-level = \"warn\"\n");
  CLI::App app;
  ServeFlags flags;
  flags.Declare(&app);
  app.parse("--config " + dir.File("c.toml") + " --max-slots 5 --store /s", false);
  EXPECT_THAT(flags.Resolve(&app), IsEmpty());
  EXPECT_EQ(flags.options.max_slots, 5);
  EXPECT_EQ(flags.options.threads, 2);
  EXPECT_EQ(flags.options.prefix_reuse, "off");
  EXPECT_EQ(flags.options.log_level, "warn");
  EXPECT_EQ(flags.options.prefill_chunk, server::ServerOptions().prefill_chunk);
  EXPECT_EQ(flags.options.store_dir, "/s");
}

}  // namespace
}  // namespace vivarium::cli
