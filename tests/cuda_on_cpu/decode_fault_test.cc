// Every barrier, every wait and every block of the fused decode kernels matters (see
// fault_test.cc).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/kernels/decode_case.h"

namespace vivarium::kernels {
namespace {

using cuda_on_cpu::Fault;
using cuda_on_cpu::LaunchCounts;

constexpr int kKernels = 4;      // of a step
constexpr int kTries = 8;        // the order of threads is random
constexpr int kMaxWaits = 8;     // that are tried, of many alike
constexpr int kFirstGroups = 3;  // of a ring, filled before the first wait

class DecodeFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = Backend::Create("cuda:0", {.deterministic = true}, &error);
    ASSERT_NE(backend_, nullptr) << error;
    case_ = std::make_unique<DecodeCase>(kShape, kRows, backend_.get());
    for (Segment& segment : case_->segments) segment.write_slot = segment.read_slot;
    residual_.assign(case_->residual.data(), case_->residual.data() + case_->residual.size());
    states_.assign(case_->states.data(), case_->states.data() + case_->states.size());
  }
  void TearDown() override { cuda_on_cpu::InjectFault({}); }

  // Residual and states after steps of one layer, nothing between them.
  std::vector<float> Run(int num_steps) {
    std::copy(residual_.begin(), residual_.end(), case_->residual.data());
    std::copy(states_.begin(), states_.end(), case_->states.data());
    case_->PoisonScratch();
    for (int i = 0; i < num_steps; ++i) EXPECT_TRUE(backend_->MambaDecode(case_->Params()));
    cuda_on_cpu::Flush();
    std::vector<float> result(case_->residual.data(),
                              case_->residual.data() + case_->residual.size());
    result.insert(result.end(), case_->states.data(), case_->states.data() + case_->states.size());
    return result;
  }
  static bool SameAs(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;  // NaN in unused slots
  }
  bool Shows(const Fault& fault, int num_steps = 1) {
    cuda_on_cpu::InjectFault({});
    const std::vector<float> good = Run(num_steps);
    for (int i = 0; i < kTries; ++i) {
      cuda_on_cpu::InjectFault(fault);
      const std::vector<float> bad = Run(num_steps);
      cuda_on_cpu::InjectFault({});
      if (!cuda_on_cpu::LastError().empty() || !SameAs(bad, good)) {
        return true;
      }
    }
    return false;
  }

  // in_proj has 13 row tiles for 6 blocks, out_proj 38: rings go round.
  static constexpr DecodeShape kShape{600, 100, 20, 16, 4, true, true};
  static constexpr int64_t kRows = 3;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<DecodeCase> case_;
  std::vector<float> residual_, states_;
};

TEST_F(DecodeFaultTest, MambaDecode) {
  cuda_on_cpu::TakeLaunchCounts();
  Run(1);
  const std::vector<LaunchCounts> counts = cuda_on_cpu::TakeLaunchCounts();
  ASSERT_EQ(counts.size(), size_t{kKernels});
  for (int launch = 0; launch < kKernels; ++launch) {
    SCOPED_TRACE("kernel " + std::to_string(launch));
    const LaunchCounts& count = counts[static_cast<size_t>(launch)];
    const bool is_project = launch == 1 || launch == 3;
    for (int i = 0; i < count.barriers; ++i) {
      EXPECT_TRUE(Shows({Fault::Kind::kSkipBarrier, i, launch}))
          << "barrier " << i << " of " << count.barriers;
    }
    for (int i = 0; i < std::min(count.async_waits, kMaxWaits); ++i) {
      // The wait for the activations is for the first groups of weights, too.
      const bool harmless = is_project && i >= 1 && i <= kFirstGroups;
      EXPECT_EQ(Shows({Fault::Kind::kSkipAsyncWait, i, launch}), !harmless)
          << "wait " << i << " of " << count.async_waits;
    }
    EXPECT_EQ(count.grid_waits, 1);
    // The first kernel of a step waits for what came before: here a step.
    EXPECT_TRUE(launch == 0 ? Shows({Fault::Kind::kSkipGridWait, 0, kKernels}, 2)
                            : Shows({Fault::Kind::kSkipGridWait, 0, launch}));
    EXPECT_TRUE(Shows({Fault::Kind::kDropLastBlock, 0, launch}));
  }
}

}  // namespace
}  // namespace vivarium::kernels
