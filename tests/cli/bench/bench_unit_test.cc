// The parts of `vivarium bench` that need no server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cli/bench/arrivals.h"
#include "cli/bench/bench_flags.h"
#include "cli/bench/chart.h"
#include "cli/bench/compare.h"
#include "cli/bench/histogram.h"
#include "cli/bench/live_view.h"
#include "cli/bench/prompts.h"
#include "cli/bench/report.h"
#include "cli/bench/summary.h"
#include "cli/bench/trace.h"
#include "cli/bench/workload.h"

namespace vivarium::cli::bench {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Histogram, QuantilesAreWithinTheBoundOfExactOnes) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> draw(15, 2);
  Histogram histogram;
  std::vector<double> exact;
  for (int i = 0; i < 20'000; ++i) {
    const auto value = static_cast<int64_t>(draw(random));
    histogram.Record(value);
    exact.push_back(static_cast<double>(value));
  }
  std::sort(exact.begin(), exact.end());
  for (const double q : {0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const double expected = QuantileOfSorted(exact, q);
    EXPECT_NEAR(histogram.Quantile(q), expected, expected * Histogram::kMaxRelativeError + 0.5)
        << q;
  }
  EXPECT_EQ(histogram.count(), 20'000u);
}

TEST(Histogram, TakesTheEndsOfItsRangeAndMerges) {
  Histogram low, high;
  EXPECT_EQ(low.Quantile(0.5), 0);
  low.Record(-5);
  low.Record(127);
  high.Record(INT64_MAX);
  low.Merge(high);
  EXPECT_EQ(low.count(), 3u);
  EXPECT_EQ(low.Quantile(0), 0);
  EXPECT_EQ(low.Quantile(0.5), 127);
  EXPECT_EQ(low.max(), INT64_MAX);
  EXPECT_NEAR(low.Quantile(1) / std::ldexp(1.0, 63), 1, Histogram::kMaxRelativeError);
}

TEST(QuantileOfSorted, IsTheNearestRank) {
  const std::vector<double> values = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  EXPECT_EQ(QuantileOfSorted(values, 0.5), 5);
  EXPECT_EQ(QuantileOfSorted(values, 0.9), 9);
  EXPECT_EQ(QuantileOfSorted(values, 0.91), 10);
  EXPECT_EQ(QuantileOfSorted({}, 0.5), 0);
}

struct GapStatistics {
  double mean, variation;  // coefficient of variation
};

GapStatistics GapsOf(const ArrivalOptions& options, int count) {
  Arrivals arrivals(options);
  double last = arrivals.Next(), sum = 0, squares = 0;
  for (int i = 0; i < count; ++i) {
    const double next = arrivals.Next();
    EXPECT_GE(next, last);
    sum += next - last;
    squares += (next - last) * (next - last);
    last = next;
  }
  const double mean = sum / count;
  return {mean, std::sqrt(std::max(squares / count - mean * mean, 0.0)) / mean};
}

TEST(Arrivals, GapsHaveTheMeanAndTheSpreadOfTheirKind) {
  constexpr int kCount = 100'000;
  const auto constant = GapsOf({.kind = ArrivalKind::kConstant, .rate = 50}, kCount);
  EXPECT_NEAR(constant.mean, 0.02, 1e-9);
  EXPECT_NEAR(constant.variation, 0, 1e-3);
  const auto poisson = GapsOf({.kind = ArrivalKind::kPoisson, .rate = 50, .seed = 3}, kCount);
  EXPECT_NEAR(poisson.mean, 0.02, 0.02 * 0.02);
  EXPECT_NEAR(poisson.variation, 1, 0.02);
  const auto bursty =
      GapsOf({.kind = ArrivalKind::kGamma, .rate = 50, .burstiness = 0.25, .seed = 3}, kCount);
  EXPECT_NEAR(bursty.mean, 0.02, 0.02 * 0.03);
  EXPECT_NEAR(bursty.variation, 2, 0.06);
}

TEST(Arrivals, ARampReachesItsRate) {
  Arrivals arrivals(
      {.kind = ArrivalKind::kConstant, .rate = 10, .end_rate = 30, .ramp_seconds = 10});
  int in_first_second = 0, in_ramp = 0, in_second_after = 0;
  for (double at = arrivals.Next(); at < 11; at = arrivals.Next()) {
    in_first_second += at < 1 ? 1 : 0;
    in_ramp += at < 10 ? 1 : 0;
    in_second_after += at >= 10 ? 1 : 0;
  }
  EXPECT_NEAR(in_first_second, 11, 1);
  EXPECT_NEAR(in_ramp, 200, 1);
  EXPECT_NEAR(in_second_after, 30, 1);
}

TEST(Arrivals, SameSeedSameTimes) {
  const ArrivalOptions options{.rate = 5, .seed = 11};
  Arrivals a(options), b(options);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.Next(), b.Next());
}

std::string ReadData(const std::string& name) {
  std::ifstream in(std::string(VIVARIUM_SOURCE_DIR) + "/tests/data/traces/" + name);
  std::stringstream contents;
  contents << in.rdbuf();
  return contents.str();
}

TEST(Trace, ReadsAzureCsv) {
  const auto rows = ParseTrace(ReadData("azure_2023_conv_excerpt.csv"), "t.csv");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 5u);
  EXPECT_EQ((*rows)[0].at_s, 0);
  EXPECT_NEAR((*rows)[1].at_s, 4.314579, 1e-5);
  EXPECT_EQ((*rows)[0].input_tokens, 374);
  EXPECT_EQ((*rows)[1].output_tokens, 109);
}

TEST(Trace, ReadsMooncakeLines) {
  const auto rows = ParseTrace(
      "{\"timestamp\": 1000, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [4, 9]}\n"
      "{\"timestamp\": 3500, \"input_length\": 10, \"output_length\": 0}\n",
      "t.jsonl");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_THAT((*rows)[0].hash_ids, ::testing::ElementsAre(4, 9));
  EXPECT_DOUBLE_EQ((*rows)[1].at_s, 2.5);
}

TEST(Trace, NamesTheMalformedRow) {
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const std::string good = "2023-11-16 18:15:46.6805900,374,44\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", "holds no row"},
      {header, "holds no row"},
      {"a,b,c\n" + good, "t:1: found 'a,b,c'"},
      {header + good + "2023-13-16 18:15:46.68,1,1\n", "t:3: found '2023-13-16"},
      {header + good + "2023-11-16 18:15:47,1\n", "t:3"},
      {header + good + "2023-11-16 18:15:47,-1,1\n", "0 .. 10000000"},
      {header + good + "2023-11-16 18:15:47,10000001,1\n", "0 .. 10000000"},
      {header + good + "2023-11-16 18:15:40,1,1\n", "rows in order of time"},
      {"{\"timestamp\": 1, \"input_length\": 1}\n", "t:1"},
      {"{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [\"a\"]}",
       "t:1"},
      {"{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1}\n{nonsense\n", "t:2"},
  };
  for (const auto& [contents, text] : cases) {
    const auto rows = ParseTrace(contents, "t");
    ASSERT_FALSE(rows.ok()) << contents;
    EXPECT_THAT(std::string(rows.status().message()), HasSubstr(text)) << contents;
  }
  EXPECT_TRUE(ParseTrace(header + "2023-11-16 18:15:47,10000000,1\n", "t").ok());
}

TEST(Prompts, AreLinesOrJsonLines) {
  const auto lines = ParsePrompts("one\r\n\ntwo", "p");
  ASSERT_TRUE(lines.ok());
  ASSERT_EQ(lines->size(), 2u);
  EXPECT_EQ((*lines)[0].turns[0], "one");
  const auto json = ParsePrompts("{\"prompt\": \"a\"}\n{\"turns\": [\"b\", \"c\"]}\n", "p");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_THAT((*json)[1].turns, ::testing::ElementsAre("b", "c"));
  for (const char* bad : {"", "{\"prompt\": \"\"}", "{\"turns\": []}", "{\"turns\": [1]}", "{"}) {
    EXPECT_FALSE(ParsePrompts(bad, "p").ok()) << bad;
  }
}

TEST(Workload, BadWordsNameValueAndExpectation) {
  EXPECT_THAT(std::string(ParseMix("fresh=1,forth=2").status().message()), HasSubstr("'forth=2'"));
  EXPECT_FALSE(ParseMix("fresh=0").ok());
  EXPECT_FALSE(ParseTokenRange("0", 1).ok());
  EXPECT_FALSE(ParseTokenRange("9:8", 1).ok());
  EXPECT_FALSE(ParseTokenRange("10000001", 1).ok());
  EXPECT_EQ(ParseTokenRange("10000000", 1)->max, 10'000'000);
  EXPECT_FALSE(ParseSlo("ttft=0").ok());
  EXPECT_THAT(std::string(ParseSlo("tfft=5").status().message()), HasSubstr("'tfft=5'"));
  EXPECT_THAT(*ParseCpus("0-2,5"), ::testing::ElementsAre(0, 1, 2, 5));
  EXPECT_FALSE(ParseCpus("3-1").ok());
  EXPECT_FALSE(ParseCpus("1024").ok());
}

WorkloadOptions SmallWorkload() {
  WorkloadOptions options;
  options.vocab_size = 100;
  options.special_ids = {0, 3};
  options.run_id = "x";
  return options;
}

TEST(Workload, DrawsSharesAndFreshPromptsWithoutSpecialIds) {
  WorkloadOptions options = SmallWorkload();
  options.mix = *ParseMix("fresh=0.75,long=0.25");
  Workload workload(options, {}, {});
  Workload twin(options, {}, {});
  int num_long = 0;
  std::vector<int32_t> last;
  for (int i = 0; i < 2'000; ++i) {
    const CallSpec spec = workload.Next();
    EXPECT_EQ(spec.token_ids, twin.Next().token_ids);
    EXPECT_EQ(spec.token_ids.size(), spec.scenario == Scenario::kLong ? 2048u : 128u);
    num_long += spec.scenario == Scenario::kLong ? 1 : 0;
    for (const int32_t id : spec.token_ids) ASSERT_TRUE(id != 0 && id != 3 && id < 100);
    EXPECT_NE(spec.token_ids, last);
    last = spec.token_ids;
  }
  EXPECT_NEAR(num_long, 500, 80);
}

TEST(Workload, AForkHasChildrenOfItsParent) {
  WorkloadOptions options = SmallWorkload();
  options.mix = *ParseMix("fork");
  options.fork_children = 3;
  Workload workload(options, {}, {});
  CallResult result;
  result.spec = workload.Next();
  EXPECT_EQ(result.spec.max_tokens, 0);
  EXPECT_TRUE(result.spec.save_at_end);
  result.record.scenario = result.spec.scenario;
  result.state_id = "st_1";
  const auto children = workload.Follow(result);
  ASSERT_EQ(children.size(), 3u);
  for (const CallSpec& child : children) EXPECT_EQ(child.state_id, "st_1");
  result.state_id = "";  // the parent failed
  EXPECT_TRUE(workload.Follow(result).empty());
}

TEST(Workload, AThreadComesBackOnlyWhenItsTurnHasEnded) {
  WorkloadOptions options = SmallWorkload();
  options.mix = *ParseMix("thread");
  options.num_threads = 1;
  Workload workload(options, {}, {});
  CallResult first;
  first.spec = workload.Next();
  first.record.scenario = Scenario::kThread;
  EXPECT_NE(workload.Next().session, first.spec.session);
  EXPECT_TRUE(workload.Follow(first).empty());
  EXPECT_EQ(workload.Next().session, first.spec.session);
}

TEST(Workload, ACutStreamGoesOnFromItsSession) {
  WorkloadOptions options = SmallWorkload();
  options.mix = *ParseMix("reconnect");
  Workload workload(options, {}, {});
  CallResult result;
  result.spec = workload.Next();
  ASSERT_GT(result.spec.cancel_after_tokens, 0);
  result.record.scenario = Scenario::kReconnect;
  result.record.was_cut = true;
  result.record.output_tokens = 100;
  const auto rest = workload.Follow(result);
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].max_tokens, 28);
  EXPECT_EQ(rest[0].session, result.spec.session);
  EXPECT_TRUE(rest[0].own_connection);
  CallResult busy;
  busy.spec = rest[0];
  busy.record.scenario = Scenario::kReconnected;
  busy.record.code = 10;
  EXPECT_TRUE(workload.IsToBeRetried(busy));
  busy.spec.retries = kMaxRetries;
  EXPECT_FALSE(workload.IsToBeRetried(busy));
}

TEST(Workload, ATraceRowResumesItsLongestKnownPrefix) {
  const std::vector<TraceRow> trace = {{0, 1100, 5, {1, 2, 3}}, {1, 1500, 5, {1, 2, 4}}};
  Workload workload(SmallWorkload(), {}, trace);
  CallResult result;
  result.spec = workload.OfTraceRow(0);
  EXPECT_EQ(result.spec.token_ids.size(), 1100u);
  result.record.scenario = Scenario::kTrace;
  result.saved = {{512, "st_a"}, {1024, "st_b"}, {1099, "st_end"}};
  workload.Follow(result);
  const CallSpec next = workload.OfTraceRow(1);
  EXPECT_EQ(next.state_id, "st_b");
  EXPECT_EQ(next.token_ids.size(), 1500u - 1025u);
}

CallRecord Record(double scheduled_s, double ttft_s, uint32_t output_tokens, double tpot_s) {
  CallRecord record;
  record.scheduled_s = record.sent_s = scheduled_s;
  record.first_token_s = scheduled_s + ttft_s;
  record.last_token_s = record.first_token_s + tpot_s * (output_tokens - 1);
  record.end_s = record.last_token_s;
  record.output_tokens = record.num_deltas = output_tokens;
  record.prefill_tokens = record.input_tokens = 10;
  record.is_finished = true;
  return record;
}

Json SummaryOf(double ttft_s, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> noise(1, 0.05);
  LoadResult result;
  result.window_end_s = result.wall_s = 100;
  for (int i = 0; i < 400; ++i) {
    result.records.push_back(Record(i * 0.25, ttft_s * noise(random), 5, 0.01 * noise(random)));
    result.itl.Record(10'000'000);
  }
  for (int i = 0; i < 100; ++i) result.tokens_per_second.push_back(20 * noise(random));
  result.window_output_tokens = 2'000;
  LoadOptions options;
  options.users = 4;
  Json summary = {{"schema", kSummarySchema},
                  {"started_at", "2024-01-01T00:00:00Z"},
                  {"server", {{"model", "<script>"}, {"numerics_id", "cpu"}}}};
  summary["loads"] = Json::array();
  summary["loads"].push_back(SummarizeLoad(options, result, *ParseSlo("ttft=100000"), 2));
  return summary;
}

TEST(Summary, CountsFromTheDueTimeAndLeavesOutFailuresAndSlowReaders) {
  LoadResult result;
  result.window_start_s = 1;
  result.window_end_s = result.wall_s = 11;
  result.window_output_tokens = 30;
  result.records = {Record(0.5, 9, 5, 9), Record(2, 0.1, 11, 0.01), Record(3, 0.3, 11, 0.01),
                    Record(4, 5, 5, 1), Record(5, 7, 5, 1)};
  result.records[1].sent_s = 2.05;
  result.records[1].restored_tokens = 30;
  result.records[3].is_slow_reader = true;
  result.records[4].is_finished = false;
  result.records[4].code = 8;
  result.records[4].error = "full";
  const Json load = SummarizeLoad({}, result, *ParseSlo("ttft=200"), 2);
  EXPECT_EQ(load["requests"]["counted"], 4);
  EXPECT_EQ(load["requests"]["outside_window"], 1);
  EXPECT_EQ(load["latency_ms"]["ttft"]["count"], 2);
  EXPECT_NEAR(load["latency_ms"]["ttft"]["p50"], 100, 1e-6);
  EXPECT_NEAR(load["latency_ms"]["ttft"]["max"], 300, 1e-6);
  EXPECT_NEAR(load["latency_ms"]["client_queue"]["max"], 50, 1e-6);
  EXPECT_NEAR(load["latency_ms"]["tpot"]["p50"], 10, 1e-6);
  EXPECT_EQ(load["latency_ms"]["resume_ttft"]["count"], 1);
  EXPECT_EQ(load["errors"]["RESOURCE_EXHAUSTED"]["count"], 1);
  EXPECT_EQ(load["errors"]["RESOURCE_EXHAUSTED"]["example"], "full");
  EXPECT_NEAR(load["throughput"]["output_tok_s"], 3, 1e-9);
  EXPECT_NEAR(load["goodput"]["share"], 1.0 / 3, 1e-3);
  EXPECT_NEAR(load["goodput"]["requests_s"], 0.1, 1e-9);
  const std::string warnings = load["warnings"].dump();
  EXPECT_THAT(warnings, HasSubstr("inflated by reuse"));
  EXPECT_THAT(warnings, HasSubstr("too few"));
  EXPECT_THAT(warnings, HasSubstr("1 of 4 requests failed"));
  EXPECT_THAT(warnings, Not(HasSubstr("the run was short")));
}

TEST(Summary, WarnsOfAClientThatIsTheBottleneck) {
  LoadResult result;
  result.window_end_s = result.wall_s = 5;
  result.client_cpu_s = 9;
  result.records = {Record(1, 0.1, 5, 0.01)};
  result.records[0].sent_s += 0.05;
  const std::string warnings = SummarizeLoad({}, result, {}, 2)["warnings"].dump();
  EXPECT_THAT(warnings, HasSubstr("it used 1.80 of its 2 cores"));
  EXPECT_THAT(warnings, HasSubstr("sent 50.0 ms or more after they were due"));
  EXPECT_THAT(warnings, HasSubstr("the run was short"));
}

TEST(Compare, TellsAChangeFromNoise) {
  const Json before = SummaryOf(0.1, 1);
  const auto same = Compare(before, SummaryOf(0.1, 2), 0.02);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_FALSE((*same)["worse"]);
  const auto worse = Compare(before, SummaryOf(0.12, 2), 0.05);
  ASSERT_TRUE(worse.ok());
  EXPECT_TRUE((*worse)["worse"]);
  const auto better = Compare(SummaryOf(0.12, 2), before, 0.05);
  EXPECT_FALSE((*better)["worse"]);
  for (const Json& row : (*better)["comparisons"]) {
    if (row["figure"] != "ttft_p50_ms") continue;
    EXPECT_EQ(row["verdict"], "better");
    EXPECT_LT(row["low"].get<double>(), row["change"].get<double>());
    EXPECT_GT(row["high"].get<double>(), row["change"].get<double>());
  }
  EXPECT_THAT(RenderComparison(*worse), HasSubstr("worse"));
}

TEST(Compare, RefusesWhatIsNoSummaryOrAnotherLoad) {
  const Json summary = SummaryOf(0.1, 1);
  EXPECT_FALSE(Compare(Json::array(), summary, 0.05).ok());
  Json other = summary;
  other["loads"][0]["load"]["users"] = 5;
  EXPECT_THAT(std::string(Compare(summary, other, 0.05).status().message()), HasSubstr("load 0"));
  other = summary;
  other["loads"][0]["samples_ms"]["ttft"][0] = "x";
  EXPECT_FALSE(Compare(summary, other, 0.05).ok());
  other = summary;
  other["loads"].clear();
  EXPECT_THAT(std::string(Compare(summary, other, 0.05).status().message()), HasSubstr("0"));
}

TEST(Spread, IsTheRangeOverTheMean) {
  const Json a = SummaryOf(0.1, 1)["loads"][0], b = SummaryOf(0.2, 1)["loads"][0];
  EXPECT_NEAR(SpreadOf({a, b})["ttft_p50_ms"]["relative"], 2.0 / 3, 0.02);
  EXPECT_EQ(SpreadOf({a, a})["ttft_p50_ms"]["relative"], 0);
}

TEST(Report, StandsAloneAndEscapes) {
  const std::string html = RenderReport(SummaryOf(0.1, 1));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  for (const char* foreign : {"<script", "http://", "https://", "src=", "url(", "nan", "inf,"}) {
    EXPECT_THAT(html, Not(HasSubstr(foreign)));
  }
  for (const char* title : {"Latency over throughput", "Goodput over offered load",
                            "TTFT over time", "share of requests"}) {
    EXPECT_THAT(html, HasSubstr(title));
  }
}

TEST(Chart, PutsPointsWhereTheAxesSayAndLeavesOutWhatIsNotFinite) {
  const std::string svg = RenderChart({"t", "x", "y", {{"s", {{0, 0}, {10, NAN}, {10, 5}}}}, true});
  EXPECT_THAT(svg, HasSubstr("64.0,274.0 544.0,34.0"));
  EXPECT_THAT(RenderChart({"t", "x", "y", {{"s", {}}}, true}), HasSubstr("nothing was measured"));
  EXPECT_EQ(EscapeHtml("a<'\"&>"), "a&lt;&#39;&quot;&amp;&gt;");
}

TEST(LiveView, ALineSaysHowItGoes) {
  LoadProgress progress;
  progress.done_share = 0.5;
  progress.done = 12;
  EXPECT_THAT(ProgressLine("4 users", progress, 100), HasSubstr("4 users [######......]"));
}

TEST(BenchFlags, ResolvesLoadsAndNamesWhatIsWrong) {
  BenchFlags flags;
  flags.rates = "1,2.5";
  const auto plan = flags.Resolve();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->loads.size(), 2u);
  EXPECT_EQ(plan->loads[1].arrivals.rate, 2.5);
  EXPECT_EQ(plan->loads[0].duration_seconds, 30);
  const auto expect_problem = [](void (*change)(BenchFlags*), const std::string& text) {
    BenchFlags wrong;
    change(&wrong);
    EXPECT_THAT(std::string(wrong.Resolve().status().message()), HasSubstr(text));
  };
  expect_problem([](BenchFlags* f) { f->users = "1,x"; }, "--users: 'x'");
  expect_problem([](BenchFlags* f) { f->users = "1.5"; }, "not whole");
  expect_problem([](BenchFlags* f) { f->users = "100001"; }, "100000");
  expect_problem([](BenchFlags* f) { f->think = "1:2:3"; }, "--think: '1:2:3'");
  expect_problem([](BenchFlags* f) { f->warmup = 30; }, "--warmup 30");
  expect_problem([](BenchFlags* f) { f->ramp_to = 30; }, "--ramp-to needs");
  expect_problem([](BenchFlags* f) { f->repeat = 51; }, "51 loads; at most 50");
  expect_problem([](BenchFlags* f) { f->mix = "x"; }, "--mix: 'x'");
  expect_problem([](BenchFlags* f) { f->cpus = "a"; }, "--cpus: 'a'");
}

}  // namespace
}  // namespace vivarium::cli::bench
