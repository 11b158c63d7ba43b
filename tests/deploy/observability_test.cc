// deploy/observability: what the dashboard and the alert rules ask for is what a live server has,
// and, where Prometheus is installed, its own checker has nothing to say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_environment.h"

namespace vivarium::test {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Not;
using ::testing::SizeIs;
using Json = nlohmann::json;
using Names = std::set<std::string>;

std::string Folder() { return RootDir() + "/deploy/observability"; }

Json Dashboard() {
  return Json::parse(ReadFile(Folder() + "/grafana/dashboards/vivarium.json"), nullptr,
                     /*allow_exceptions=*/false);
}

Names Matches(const std::string& text, const std::regex& pattern, int group) {
  Names found;
  for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) {
    found.insert((*it)[group]);
  }
  return found;
}

Names MetricNames(const std::string& text) {
  return Matches(text, std::regex(R"(\bvivarium_[a-z0-9_]+)"), 0);
}

// Labels that an expression selects or groups by.
Names LabelNames(const std::string& text) {
  Names names = Matches(text, std::regex(R"re((\w+)\s*(=~|!~|!=|=)\s*")re"), 1);
  for (const std::string& list : Matches(text, std::regex(R"(\bby \(([^)]*)\))"), 1)) {
    for (const std::string& name : Matches(list, std::regex(R"(\w+)"), 0)) names.insert(name);
  }
  return names;
}

// Every value of a key anywhere in the document.
void Collect(const Json& json, const std::string& key, std::vector<std::string>* values) {
  if (json.is_object() && json.contains(key) && json[key].is_string()) {
    values->push_back(json[key]);
  }
  for (const Json& child : json) {
    if (child.is_structured()) Collect(child, key, values);
  }
}

// What a server that has done a little of everything exports.
class ObservabilityTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server = ServerProcess::Start({.args = {"--threads", "1"}});
    ASSERT_TRUE(server.ok()) << server.status();
    const auto generated = RunProcess({VivariumBinary(), "generate", "Once", "--max-tokens", "4",
                                       "--server", (*server)->address()});
    ASSERT_EQ(generated->exit_code, 0) << generated->err;
    const Names ports =
        Matches((*server)->Log(), std::regex(R"(event=listening .*metrics=(\S+))"), 1);
    ASSERT_THAT(ports, SizeIs(1));
    const auto scraped = RunProcess({"/usr/bin/env", "curl", "-sS", "--max-time", "20",
                                     "http://" + *ports.begin() + "/metrics"});
    ASSERT_EQ(scraped->exit_code, 0) << scraped->err;
    metrics_ = new Names(Matches(scraped->out, std::regex(R"((?:^|\n)(vivarium_\w+))"), 1));
    // What Prometheus adds to every series comes on top.
    labels_ = new Names(Matches(scraped->out, std::regex(R"re([{,](\w+)=")re"), 1));
    labels_->insert({"instance", "job"});
  }
  static void TearDownTestSuite() {
    delete metrics_;
    delete labels_;
  }

  static const Names* metrics_;
  static Names* labels_;
};
const Names* ObservabilityTest::metrics_ = nullptr;
Names* ObservabilityTest::labels_ = nullptr;

TEST_F(ObservabilityTest, TheDashboardAsksForWhatThereIs) {
  const Json dashboard = Dashboard();
  ASSERT_FALSE(dashboard.is_discarded());
  std::vector<std::string> expressions;
  Collect(dashboard, "expr", &expressions);
  Collect(dashboard["templating"], "query", &expressions);
  ASSERT_GT(expressions.size(), 20u);
  size_t num_metrics = 0;
  for (const std::string& expression : expressions) {
    EXPECT_THAT(*metrics_, IsSupersetOf(MetricNames(expression))) << expression;
    EXPECT_THAT(*labels_, IsSupersetOf(LabelNames(expression))) << expression;
    num_metrics += MetricNames(expression).size();
  }
  EXPECT_GT(num_metrics, 30u);
}

TEST_F(ObservabilityTest, TheRulesAskForWhatThereIs) {
  const std::string rules = ReadFile(Folder() + "/vivarium.rules.yml");
  const Names metrics = MetricNames(rules);
  EXPECT_GT(metrics.size(), 10u);
  // Texts for people may name metrics too.
  EXPECT_THAT(*metrics_, IsSupersetOf(metrics));
  const std::regex expressions(R"(\n +expr:([^\n]*(?:\n {10,}[^\n]*)*))");
  const Names expected = Matches(rules, expressions, 1);
  EXPECT_THAT(expected, SizeIs(Matches(rules, std::regex(R"(alert: (\w+))"), 1).size()));
  for (const std::string& expression : expected) {
    EXPECT_THAT(*labels_, IsSupersetOf(LabelNames(expression))) << expression;
  }
}

// What the checks above would miss if they looked at nothing.
TEST_F(ObservabilityTest, ANameThatTheServerHasNotIsFound) {
  EXPECT_THAT(MetricNames("rate(vivarium_slots_total{a=\"b\"}[5m]) > vivarium_slots"),
              ElementsAre("vivarium_slots", "vivarium_slots_total"));
  EXPECT_THAT(LabelNames("sum by (le, x) (y{a=~\"b\", c!=\"d\"})"),
              ElementsAre("a", "c", "le", "x"));
  EXPECT_THAT(*metrics_, Contains("vivarium_slots"));
  EXPECT_THAT(*metrics_, Not(Contains("vivarium_slots_total")));
  EXPECT_THAT(*labels_, Not(Contains("x")));
}

TEST(DashboardTest, PanelsAreDistinctAndWithinTheGrid) {
  const Json dashboard = Dashboard();
  ASSERT_FALSE(dashboard.is_discarded());
  std::set<int> ids;
  std::map<std::pair<int, int>, std::string> taken;
  for (const Json& panel : dashboard["panels"]) {
    const std::string title = panel["title"];
    EXPECT_TRUE(ids.insert(panel["id"].get<int>()).second) << title;
    const Json& place = panel["gridPos"];
    EXPECT_LE(place["x"].get<int>() + place["w"].get<int>(), 24) << title;
    for (int x = place["x"]; x < place["x"].get<int>() + place["w"].get<int>(); ++x) {
      for (int y = place["y"]; y < place["y"].get<int>() + place["h"].get<int>(); ++y) {
        const auto [other, is_free] = taken.insert({{x, y}, title});
        EXPECT_TRUE(is_free) << title << " lies over " << other->second;
      }
    }
    if (panel["type"] == "row") continue;
    EXPECT_FALSE(panel["targets"].empty()) << title;
    EXPECT_TRUE(panel["fieldConfig"]["defaults"].contains("unit")) << title;
  }
}

// What Prometheus' own checker says of files; skips the test where it is not installed.
class PromtoolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto version = RunProcess({"/usr/bin/env", "promtool", "--version"});
    if (version->exit_code != 0) GTEST_SKIP() << "there is no promtool (Debian's prometheus)";
  }

  static void ExpectSuccess(std::vector<std::string> args) {
    args.insert(args.begin(), {"/usr/bin/env", "promtool"});
    const auto result = RunProcess(args);
    EXPECT_EQ(result->exit_code, 0) << result->out << result->err;
    EXPECT_THAT(result->out, HasSubstr("SUCCESS"));
  }
};

TEST_F(PromtoolTest, RulesAndConfigAreValidAndTheRulesDoWhatTheirTestsSay) {
  ExpectSuccess({"check", "rules", Folder() + "/vivarium.rules.yml"});
  ExpectSuccess({"check", "config", Folder() + "/prometheus.yml"});
  ExpectSuccess({"test", "rules", Folder() + "/vivarium.rules.test.yml"});
}

TEST_F(PromtoolTest, TheDashboardsExpressionsAreValid) {
  std::vector<std::string> expressions;
  Collect(Dashboard(), "expr", &expressions);
  // As recording rules, with what Grafana puts in for its variables. JSON is YAML.
  Json rules = Json::array();
  for (std::string expression : expressions) {
    expression = std::regex_replace(expression, std::regex(R"(\$__rate_interval)"), "1m");
    expression = std::regex_replace(expression, std::regex(R"(\$instance)"), ".*");
    EXPECT_THAT(expression, Not(HasSubstr("$")));
    rules.push_back({{"record", "panel_" + std::to_string(rules.size())}, {"expr", expression}});
  }
  EXPECT_GT(rules.size(), 30u);
  const Json groups = {{"groups", {{{"name", "dashboard"}, {"rules", rules}}}}};
  TempDir dir;
  WriteFile(dir.File("rules.yml"), groups.dump());
  ExpectSuccess({"check", "rules", dir.File("rules.yml")});
}

}  // namespace
}  // namespace vivarium::test
