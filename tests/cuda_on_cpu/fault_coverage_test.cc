// Every op of kernels/ops.h has a fault test: one of a suite named *Faults or *FaultTest whose name
// begins with the op's, or has it after an "And".
#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <vector>

#include "tests/support/temp_dir.h"

namespace vivarium::kernels {
namespace {

std::vector<std::string> Ops() {
  const std::string text = test::ReadFile(VIVARIUM_SOURCE_DIR "/kernels/ops.h");
  const std::regex params("struct (\\w+)Params \\{");
  std::vector<std::string> ops;
  for (std::sregex_iterator found(text.begin(), text.end(), params), end; found != end; ++found) {
    ops.push_back((*found)[1]);
  }
  return ops;
}

std::vector<std::string> FaultTests() {
  std::vector<std::string> names;
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  for (int s = 0; s < all.total_test_suite_count(); ++s) {
    const testing::TestSuite& suite = *all.GetTestSuite(s);
    if (!std::regex_search(suite.name(), std::regex("(Faults|FaultTest)$"))) continue;
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
    const std::regex names_it("(^|And)" + op);
    bool is_there = false;
    for (const std::string& test : tests) is_there |= std::regex_search(test, names_it);
    EXPECT_TRUE(is_there) << op << " has none";
  }
}

}  // namespace
}  // namespace vivarium::kernels
