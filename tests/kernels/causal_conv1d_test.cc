#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/expect_near.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::kernels {
namespace {

// Inputs and states of one convolution; slots that nobody reads are NaN.
struct ConvCase {
  ConvCase(int64_t tokens, int64_t num_channels, int32_t conv_width, int32_t slots)
      : num_tokens(tokens),
        channels(num_channels),
        width(conv_width),
        num_slots(slots),
        x_stride(num_channels + 9),
        slot_stride((conv_width - 1) * num_channels + 5),
        x(tokens * x_stride),
        weight(conv_width * num_channels),
        bias(num_channels),
        states(slots * slot_stride) {
    RandomValues random(11);
    random.FillRows(x.data(), tokens, channels, x_stride);
    random.Fill(weight.data(), weight.size(), 0.5f);
    random.Fill(bias.data(), channels);
  }
  void FillSlot(int32_t slot) {
    RandomValues(100 + static_cast<uint64_t>(slot))
        .Fill(states.data() + slot * slot_stride, (width - 1) * channels);
  }
  CausalConv1dParams Params(const std::vector<Segment>& segments, float* out, int64_t out_stride) {
    CausalConv1dParams params{};
    params.x = x.data();
    params.x_stride = x_stride;
    params.weight = weight.data();
    params.bias = bias.data();
    params.states = states.data();
    params.slot_stride = slot_stride;
    params.out = out;
    params.out_stride = out_stride;
    params.segments = segments.data();
    params.num_segments = static_cast<int64_t>(segments.size());
    params.channels = channels;
    params.width = width;
    return params;
  }
  const float* Slot(int32_t slot) const { return states.data() + slot * slot_stride; }
  int64_t state_size() const { return (width - 1) * channels; }

  int64_t num_tokens, channels;
  int32_t width, num_slots;
  int64_t x_stride, slot_stride;
  GuardedArray x, weight, bias, states;
};

class CausalConv1dTest : public IsaTest {};
VIVARIUM_FOR_EACH_ISA(CausalConv1dTest);

TEST_P(CausalConv1dTest, MatchesReference) {
  for (const int32_t width : {1, 2, 3, 4, 5, kMaxConvWidth}) {
    for (const int64_t channels : {1, 15, 16, 17, 64, 100}) {
      for (const bool with_bias : {false, true}) {
        SCOPED_TRACE(std::to_string(width) + " " + std::to_string(channels));
        // From zero, from a slot in place, from one slot to another, to none, to one from zero.
        ConvCase c(30, channels, width, 6);
        const std::vector<Segment> segments = {{0, 1, 0, 0},
                                               {1, 2, kPadSlot, 1},
                                               {3, 3, 2, 3},
                                               {7, 17, 5, kPadSlot},
                                               {24, 6, kPadSlot, kPadSlot}};
        for (const int32_t slot : {0, 2, 5}) c.FillSlot(slot);
        GuardedArray out(30 * (channels + 2));
        CausalConv1dParams params = c.Params(segments, out.data(), channels + 2);
        if (!with_bias) params.bias = nullptr;
        const StatefulReference reference = ReferenceCausalConv1d(params, 30);
        const std::vector<float> before(c.states.data(), c.states.data() + c.states.size());
        MakeBackend(2)->CausalConv1d(params);
        for (size_t s = 0; s < segments.size(); ++s) {
          const Segment& segment = segments[s];
          for (int64_t t = segment.token_begin; t < segment.token_begin + segment.num_tokens; ++t) {
            Reference row;
            const auto at = static_cast<ptrdiff_t>(t * channels);
            row.value.assign(reference.out.value.begin() + at,
                             reference.out.value.begin() + at + channels);
            row.magnitude.assign(reference.out.magnitude.begin() + at,
                                 reference.out.magnitude.begin() + at + channels);
            ExpectNear(out.data() + t * (channels + 2), channels, row, 1, channels,
                       kTolerances.conv, "conv");
          }
          if (segment.write_slot == kPadSlot) continue;
          for (int64_t i = 0; i < c.state_size(); ++i) {
            ASSERT_EQ(c.Slot(segment.write_slot)[i],
                      reference.states[s].value[static_cast<size_t>(i)]);
          }
        }
        EXPECT_TRUE(std::isnan(out[6 * (channels + 2)])) << "a row of no segment was written";
        for (const int32_t slot : {2, 4, 5}) {  // read only, or not named
          EXPECT_TRUE(SameBits(c.Slot(slot), before.data() + slot * c.slot_stride, c.slot_stride));
        }
      }
    }
  }
}

// One segment, chunks of any size, token by token, in place, on 1 to 3 threads: the same bits.
TEST_P(CausalConv1dTest, ChunkingInPlaceAndThreadsChangeNothing) {
  constexpr int32_t kTokens = 23;
  for (const int32_t width : {1, 2, 4, 7}) {
    const int64_t channels = 83;
    ConvCase whole(kTokens, channels, width, 4);
    whole.FillSlot(0);
    GuardedArray expected(kTokens * channels);
    const std::vector<Segment> one = {{0, kTokens, 0, 1}};
    MakeBackend(1)->CausalConv1d(whole.Params(one, expected.data(), channels));
    for (const int32_t chunk : {1, 2, 3, 4, 5, 22, 23}) {
      for (int threads = 1; threads <= 3; ++threads) {
        ConvCase c(kTokens, channels, width, 4);
        c.FillSlot(0);
        const std::unique_ptr<Backend> backend = MakeBackend(threads);
        for (int32_t begin = 0; begin < kTokens; begin += chunk) {
          // Alternates between slots 1 and 2, so that each read slot differs from the written one.
          const int32_t read = begin == 0 ? 0 : 1 + (begin / chunk - 1) % 2;
          const std::vector<Segment> segments = {
              {begin, std::min(chunk, kTokens - begin), read, 1 + begin / chunk % 2}};
          backend->CausalConv1d(c.Params(segments, c.x.data(), c.x_stride));
        }
        for (int32_t t = 0; t < kTokens; ++t) {
          ASSERT_TRUE(
              SameBits(c.x.data() + t * c.x_stride, expected.data() + t * channels, channels))
              << "width " << width << " chunk " << chunk << " token " << t;
        }
        const int32_t last = 1 + (kTokens - 1) / chunk % 2;
        ASSERT_TRUE(SameBits(c.Slot(last), whole.Slot(1), c.state_size()));
      }
    }
  }
}

TEST_P(CausalConv1dTest, NoSegmentsIsNothing) {
  ConvCase c(1, 16, 4, 1);
  MakeBackend(2)->CausalConv1d(c.Params({}, nullptr, 16));
}

}  // namespace
}  // namespace vivarium::kernels
