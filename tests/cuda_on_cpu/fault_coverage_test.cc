// Every op of kernels/ops.h has a fault test: one of a suite named *Faults or *FaultTest whose name
// begins with the op's, or has it after an "And".
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/temp_dir.h"

namespace vivarium::kernels {
namespace {

std::vector<std::string> Ops() {
  constexpr std::string_view kBegin = "struct ", kEnd = "Params {";
  std::istringstream header(test::ReadFile(VIVARIUM_SOURCE_DIR "/kernels/ops.h"));
  std::vector<std::string> ops;
  for (std::string line; std::getline(header, line);) {
    if (!line.starts_with(kBegin) || !line.ends_with(kEnd)) continue;
    ops.push_back(line.substr(kBegin.size(), line.size() - kBegin.size() - kEnd.size()));
  }
  return ops;
}

std::vector<std::string> FaultTests() {
  std::vector<std::string> names;
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  for (int s = 0; s < all.total_test_suite_count(); ++s) {
    const testing::TestSuite& suite = *all.GetTestSuite(s);
    const std::string_view name = suite.name();
    if (!name.ends_with("Faults") && !name.ends_with("FaultTest")) continue;
    for (int t = 0; t < suite.total_test_count(); ++t) {
      names.emplace_back(suite.GetTestInfo(t)->name());
    }
  }
  return names;
}

TEST(FaultCoverage, EveryOpHasAFaultTest) {
  const std::vector<std::string> ops = Ops();
  EXPECT_GE(ops.size(), 9u);
  const std::vector<std::string> tests = FaultTests();
  for (const std::string& op : ops) {
    const bool is_there = std::any_of(tests.begin(), tests.end(), [&op](const std::string& test) {
      return test.starts_with(op) || test.find("And" + op) != std::string::npos;
    });
    EXPECT_TRUE(is_there) << op << " has none";
  }
}

}  // namespace
}  // namespace vivarium::kernels
