// Every barrier, wait and block of the kernels that keep states matters (fault_test.cc): single
// segments and chains of them, states in f32 and bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/cuda_on_cpu/fault_checks.h"

namespace vivarium::kernels {
namespace {

constexpr int32_t kTokens = 93;
constexpr int32_t kNumSlots = 3;
const std::vector<Segment> kLone = {{0, 80, kPadSlot, 0}};
// Two, two and three tiles of the scan, each with two barriers and a wait.
const std::vector<Segment> kChain = {
    {0, 20, kPadSlot, 0}, {20, 25, kPreviousSegment, kPadSlot}, {45, 48, kPreviousSegment, 1}};
constexpr cuda_on_cpu::LaunchCounts kChainCounts = {.barriers = 14, .async_waits = 7};

class SegmentFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = Backend::Create("cuda:0", {}, &error);
    ASSERT_NE(backend_, nullptr) << error;
    for (float& value : a_) value = -std::fabs(value);
  }

  // Outputs, and the states' bytes as whole floats.
  std::vector<float> Scan(const std::vector<Segment>& segments, DType state_dtype) {
    std::vector<float> result(kTokens * kChannels + kNumSlots * kChannels * kState, NAN);
    SelectiveScanParams params{};
    params.x = x_.data();
    params.z = z_.data();
    params.dt = dt_.data();
    params.x_stride = params.z_stride = params.dt_stride = params.y_stride = kChannels;
    params.b = bc_.data();
    params.c = bc_.data() + kState;
    params.bc_stride = 2 * kState;
    params.a = a_.data();
    params.dt_bias = bias_.data();
    params.d_skip = bias_.data();
    params.y = result.data();
    params.states = result.data() + kTokens * kChannels;
    params.state_dtype = state_dtype;
    params.slot_stride = kChannels * kState;
    params.segments = segments.data();
    params.num_segments = static_cast<int64_t>(segments.size());
    params.channels = kChannels;
    params.d_state = kState;
    backend_->SelectiveScan(params);
    return result;
  }

  std::vector<float> Convolve(const std::vector<Segment>& segments) {
    std::vector<float> result((kTokens + kNumSlots * (kWidth - 1)) * kChannels, NAN);
    CausalConv1dParams params{};
    params.x = x_.data();
    params.weight = a_.data();
    params.states = result.data() + kTokens * kChannels;
    params.slot_stride = (kWidth - 1) * kChannels;
    params.out = result.data();
    params.x_stride = params.out_stride = params.channels = kChannels;
    params.segments = segments.data();
    params.num_segments = static_cast<int64_t>(segments.size());
    params.width = kWidth;
    backend_->CausalConv1d(params);
    return result;
  }

  static constexpr int64_t kChannels = 48, kState = 16, kWidth = 4;
  std::unique_ptr<Backend> backend_;
  const std::vector<float> x_ = RandomVector(kTokens * kChannels, 4);
  const std::vector<float> z_ = RandomVector(kTokens * kChannels, 5);
  const std::vector<float> dt_ = RandomVector(kTokens * kChannels, 6);
  const std::vector<float> bc_ = RandomVector(kTokens * 2 * kState, 7);
  std::vector<float> a_ = RandomVector(kChannels * kState, 8);
  const std::vector<float> bias_ = RandomVector(kChannels, 9);
};

// Five tiles of 16 tokens: the last barrier of all guards nothing that follows, nor the one before
// the last tile, whose neighbour buffer is not filled again.
TEST_F(SegmentFaultTest, SelectiveScan) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    ExpectEveryFaultShows([&] { return Scan(kLone, dtype); }, {7, 9});
  }
}

// The next segment's first tiles go into buffers that the one before has used: its last barrier
// guards them. (The blocks of the other segments have nothing to do.)
TEST_F(SegmentFaultTest, SelectiveScanOfAChain) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    ExpectEveryCollectiveShows([&] { return Scan(kChain, dtype); }, kChainCounts, {1, 5, 11, 13});
  }
}

// No barriers, but a block that must run: here the last one is of the segment after the chain.
TEST_F(SegmentFaultTest, CausalConv1dOfAChain) {
  std::vector<Segment> segments = kChain;
  segments[2].num_tokens = 33;
  segments.push_back({78, 15, kPadSlot, 2});
  ExpectEveryFaultShows([&] { return Convolve(segments); }, {});
}

}  // namespace
}  // namespace vivarium::kernels
