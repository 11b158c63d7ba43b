// Every barrier, wait and block of the fused last norm and head matters (fault_test.cc).
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/cuda_on_cpu/fault_checks.h"

namespace vivarium::kernels {
namespace {

// In sequence: out = W norm(W norm(x)), W square, so that the second launch waits for the first.
class NormLinearFaultTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 3, kCols = 130;

  void SetUp() override {
    std::string error;
    backend_ = Backend::Create("cuda:0", {}, &error);
    ASSERT_NE(backend_, nullptr) << error;
    const std::vector<float> w = RandomVector(kCols * kCols, 11);
    weight_ = backend_->Pack(w.data(), DType::kF32, kCols, kCols, DType::kBF16);
  }
  void TearDown() override { cuda_on_cpu::InjectFault({}); }

  std::vector<float> Run(int num_launches) {
    std::vector<float> from = RandomVector(kRows * kCols, 12);
    std::vector<float> out(from.size(), NAN), last(from.size(), NAN);
    const auto launch = [this](const std::vector<float>& x, std::vector<float>* to) {
      EXPECT_TRUE(backend_->NormLinear(
          {x.data(), norm_weight_.data(), 1e-5f, weight_.get(), to->data(), kCols, kRows}));
    };
    launch(from, &out);
    if (num_launches == 2) launch(out, &last);
    cuda_on_cpu::Flush();
    return num_launches == 2 ? last : out;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<PackedMatrix> weight_;
  const std::vector<float> norm_weight_ = RandomVector(kCols, 13);
};

TEST_F(NormLinearFaultTest, NormLinear) {
  ExpectEveryFaultShows([&] { return Run(1); }, {});
  cuda_on_cpu::TakeLaunchCounts();
  Run(2);
  const auto counts = cuda_on_cpu::TakeLaunchCounts();
  ASSERT_EQ(counts.size(), 2u);
  EXPECT_EQ(counts[1].grid_waits, 1);
  EXPECT_TRUE(Shows({Fault::Kind::kSkipGridWait, 0, 1}, [&] { return Run(2); }));
}

}  // namespace
}  // namespace vivarium::kernels
