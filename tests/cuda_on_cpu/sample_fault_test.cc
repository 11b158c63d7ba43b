// Every barrier and block of the sampling kernel matters (fault_test.cc). Its rounds depend on the
// data, so a fault is a line of the source that is left out, in launches of every kind. That leads
// loops and indices out of bounds: each fault is tried in a child process, and shows where that
// dies, or does not end.
#include <gtest/gtest.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/cuda_on_cpu/fault_checks.h"
#include "tests/support/temp_dir.h"

namespace vivarium::kernels {
namespace {

constexpr int64_t kNumIds = 2500;
constexpr int64_t kNumRows = 2;
constexpr int32_t kNumEdits = 40;  // of a row
constexpr int kMaxSeconds = 10;    // of processor time, for a child

bool ShowsInChild(const Fault& fault, const std::function<std::vector<float>()>& launch) {
  const pid_t child = fork();
  if (child == 0) {
    const itimerval limit = {{0, 0}, {kMaxSeconds, 0}};
    setitimer(ITIMER_VIRTUAL, &limit, nullptr);  // SIGVTALRM ends it
    (void)std::freopen("/dev/null", "w", stderr);
    _exit(Shows(fault, launch) ? 1 : 0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

SampleRow Row(int64_t index) {
  SampleRow row{};
  row.logit_row = index;
  row.seed = 7;
  row.position = static_cast<uint64_t>(index);
  row.temperature = 0.9f;
  row.top_p = 1.0f;
  row.repetition_penalty = 1.2f;
  row.given_id = -1;
  row.num_top_logprobs = -1;
  row.edits_begin = static_cast<int32_t>(index) * kNumEdits;
  return row;
}

class SampleFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = Backend::Create("cuda:0", {}, &error);
    ASSERT_NE(backend_, nullptr) << error;
    // Few values, so that cuts go through ties.
    for (float& logit : logits_) logit = std::round(16.0f * logit) / 4.0f;
    for (int32_t i = 0; i < kNumRows * kNumEdits; ++i) {
      edits_.push_back({i * 17 % static_cast<int32_t>(kNumIds), 0.5f + static_cast<float>(i), 1,
                        LogitEdit::kRecent});
    }
  }

  // Tokens, ranked tokens, and the logits, which are to be as before.
  std::vector<float> Run(const std::function<void(SampleRow*)>& set) {
    std::vector<SampleRow> rows;
    for (int64_t i = 0; i < kNumRows; ++i) set(&rows.emplace_back(Row(i)));
    std::vector<float> logits = logits_;
    std::vector<float> unedited(edits_.size(), NAN);
    std::vector<SampledToken> tokens(kNumRows, {-7, SampleStatus::kOk, NAN, NAN});
    std::vector<RankedToken> top(kNumRows * kMaxTopLogprobs, {-7, NAN});
    backend_->SampleTokens({logits.data(), kNumIds, kNumIds, rows.data(), kNumRows, edits_.data(),
                            unedited.data(), tokens.data(), top.data()});
    cuda_on_cpu::Flush();
    std::vector<float> result = logits;
    const auto append = [&result](const auto& values) {
      const size_t begin = result.size();
      result.resize(begin + values.size() * sizeof(values[0]) / sizeof(float));
      std::memcpy(&result[begin], values.data(), values.size() * sizeof(values[0]));
    };
    append(tokens);
    append(top);
    return result;
  }
  // Launches that between them go through every pass.
  std::vector<float> RunAll() {
    std::vector<float> results = Run([](SampleRow* row) { row->temperature = 0.0f; });
    const auto add = [&](const std::function<void(SampleRow*)>& set) {
      const std::vector<float> more = Run(set);
      results.insert(results.end(), more.begin(), more.end());
    };
    add([](SampleRow* row) { row->num_edits = kNumEdits; });
    add([](SampleRow* row) { row->num_top_logprobs = 7; });
    // Many ids of nearly the same weight: which one is drawn depends on all that pass.
    add([](SampleRow* row) {
      row->temperature = 50.0f;
      row->top_k = 300;
      row->num_top_logprobs = 20;
    });
    add([](SampleRow* row) {
      row->temperature = 50.0f;
      row->top_p = 0.7f;
    });
    return results;
  }

  std::unique_ptr<Backend> backend_;
  std::vector<float> logits_ = RandomVector(kNumRows * kNumIds, 31);
  std::vector<LogitEdit> edits_;
};

// A line of the kernel's source.
struct Line {
  int number;
  std::string text;
  bool Has(const char* part) const { return text.find(part) != std::string::npos; }
};
std::vector<Line> LinesWith(const char* part) {
  std::istringstream source(test::ReadFile(VIVARIUM_SOURCE_DIR "/kernels/cuda/sample_tokens.cuh"));
  std::vector<Line> lines;
  Line line{};
  while (std::getline(source, line.text)) {
    ++line.number;
    if (line.Has(part)) lines.push_back(line);
  }
  return lines;
}

TEST_F(SampleFaultTest, SampleTokens) {
  const auto launch = [this] { return RunAll(); };
  const std::vector<Line> barriers = LinesWith("__syncthreads();");
  EXPECT_GE(barriers.size(), 10u);
  for (const Line& line : barriers) {
    // That something has been read before it is written again, other barriers see to as well, on
    // every way there is today; these keep the passes independent of each other.
    const bool is_spare = line.Has("have been read");
    EXPECT_EQ(ShowsInChild({Fault::Kind::kSkipBarrier, -1, -1, line.number}, launch), !is_spare)
        << "line " << line.number;
  }
  const std::vector<Line> additions = LinesWith("atomicAdd(");
  EXPECT_GE(additions.size(), 3u);
  for (const Line& line : additions) {
    EXPECT_TRUE(ShowsInChild({Fault::Kind::kLoseAdd, -1, -1, line.number}, launch))
        << "line " << line.number;
  }
  EXPECT_TRUE(ShowsInChild({Fault::Kind::kDropLastBlock, 0}, launch));
}

}  // namespace
}  // namespace vivarium::kernels
