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

// Inputs and states of one scan; slots that nobody reads are NaN, the strides leave NaN gaps.
struct ScanCase {
  ScanCase(int64_t tokens, int64_t num_channels, int32_t state_size)
      : num_tokens(tokens),
        channels(num_channels),
        d_state(state_size),
        tiles((num_channels + kChannelTile - 1) / kChannelTile),
        state_floats(tiles * state_size * kChannelTile),
        slot_stride(state_floats + 11),
        stride(num_channels + 3),
        bc_stride(2 * state_size + 1),
        x(tokens * stride),
        z(tokens * stride),
        dt(tokens * stride),
        bc(tokens * bc_stride),
        a(state_floats),
        dt_bias(num_channels),
        d_skip(num_channels),
        states(kNumSlots * slot_stride) {
    RandomValues random(21);
    random.FillRows(x.data(), tokens, channels, stride);
    random.FillRows(z.data(), tokens, channels, stride);
    random.FillRows(dt.data(), tokens, channels, stride);
    random.FillRows(bc.data(), tokens, 2 * d_state, bc_stride);
    random.Fill(d_skip.data(), channels);
    // As trained models have them: dt from 1e-3 to 3, A from -0.1 to -16.
    for (int64_t i = 0; i < channels; ++i) dt_bias[i] = random.Uniform(-7.0f, 3.0f);
    for (int64_t i = 0; i < state_floats; ++i) {
      a[i] = ChannelAt(i) < channels ? -random.Uniform(0.1f, 16.0f) : 0.0f;
    }
  }
  int64_t ChannelAt(int64_t i) const {
    return i / (d_state * kChannelTile) * kChannelTile + i % kChannelTile;
  }
  void FillSlot(int32_t slot) {
    RandomValues random(200 + static_cast<uint64_t>(slot));
    for (int64_t i = 0; i < state_floats; ++i) {
      states[slot * slot_stride + i] = ChannelAt(i) < channels ? random.Normal() : 0.0f;
    }
  }
  SelectiveScanParams Params(const std::vector<Segment>& segments, float* y, int64_t y_stride) {
    SelectiveScanParams params{};
    params.x = x.data();
    params.x_stride = stride;
    params.z = z.data();
    params.z_stride = stride;
    params.dt = dt.data();
    params.dt_stride = stride;
    params.b = bc.data();
    params.c = bc.data() + d_state;
    params.bc_stride = bc_stride;
    params.a = a.data();
    params.dt_bias = dt_bias.data();
    params.d_skip = d_skip.data();
    params.states = states.data();
    params.slot_stride = slot_stride;
    params.y = y;
    params.y_stride = y_stride;
    params.segments = segments.data();
    params.num_segments = static_cast<int64_t>(segments.size());
    params.channels = channels;
    params.d_state = d_state;
    return params;
  }
  const float* Slot(int32_t slot) const { return states.data() + slot * slot_stride; }

  static constexpr int32_t kNumSlots = 6;
  int64_t num_tokens, channels;
  int32_t d_state;
  int64_t tiles, state_floats, slot_stride, stride, bc_stride;
  GuardedArray x, z, dt, bc, a, dt_bias, d_skip, states;
};

class SelectiveScanTest : public IsaTest {
 protected:
  void CheckAgainstReference(int64_t channels, int32_t d_state);
};
VIVARIUM_FOR_EACH_ISA(SelectiveScanTest);

void SelectiveScanTest::CheckAgainstReference(int64_t channels, int32_t d_state) {
  const std::string what =
      std::to_string(channels) + " channels, d_state " + std::to_string(d_state);
  SCOPED_TRACE(what);
  constexpr int64_t kTokens = 230;
  ScanCase c(kTokens, channels, d_state);
  // In place, from zero, from one slot to another, to none; row 6 belongs to nobody.
  const std::vector<Segment> segments = {
      {0, 1, 0, 0},        {1, 2, kPadSlot, 1},          {3, 3, 2, 3},
      {7, 7, 5, kPadSlot}, {14, 16, kPadSlot, kPadSlot}, {30, 200, kPadSlot, 4}};
  for (const int32_t slot : {0, 2, 5}) c.FillSlot(slot);
  GuardedArray y(kTokens * (channels + 2));
  const SelectiveScanParams params = c.Params(segments, y.data(), channels + 2);
  const StatefulReference reference = ReferenceSelectiveScan(params, kTokens);
  const std::vector<float> before(c.states.data(), c.states.data() + c.states.size());
  MakeBackend(2)->SelectiveScan(params);
  for (int64_t i = 0; i < channels; ++i) {
    ASSERT_TRUE(std::isnan(y[6 * (channels + 2) + i])) << "a row of no segment was written";
    y[6 * (channels + 2) + i] = 0.0f;  // as the reference has it
  }
  ExpectNear(y.data(), channels + 2, reference.out, kTokens, channels, kTolerances.scan_y,
             "scan y, " + what);
  for (size_t s = 0; s < segments.size(); ++s) {
    if (segments[s].write_slot == kPadSlot) continue;
    ExpectNear(c.Slot(segments[s].write_slot), c.state_floats, reference.states[s], 1,
               c.state_floats, kTolerances.scan_state, "scan state, " + what);
  }
  for (const int32_t slot : {2, 5}) {  // read only
    EXPECT_TRUE(SameBits(c.Slot(slot), before.data() + slot * c.slot_stride, c.slot_stride));
  }
  for (const int32_t slot : {0, 1, 3, 4}) {  // the gap after a slot's state stays untouched
    for (int64_t i = c.state_floats; i < c.slot_stride; ++i) {
      ASSERT_TRUE(std::isnan(c.Slot(slot)[i]));
    }
  }
}

TEST_P(SelectiveScanTest, MatchesReference) {
  for (const int64_t channels : {1, 15, 16, 17, 33, 96}) {
    for (const int32_t d_state : {1, 2, 3, 8, 16, 17, 64}) CheckAgainstReference(channels, d_state);
  }
  CheckAgainstReference(20, kMaxStateSize);
}

// One segment, chunks of any size, token by token, y in place of x or z, on 1 to 3 threads: the
// same bits in outputs and states.
TEST_P(SelectiveScanTest, ChunkingInPlaceAndThreadsChangeNothing) {
  constexpr int32_t kTokens = 65;
  const int64_t channels = 200;
  for (const int32_t d_state : {5, 16}) {
    ScanCase whole(kTokens, channels, d_state);
    whole.FillSlot(0);
    GuardedArray expected(kTokens * channels);
    MakeBackend(1)->SelectiveScan(whole.Params({{0, kTokens, 0, 1}}, expected.data(), channels));
    for (const int32_t chunk : {1, 2, 7, 31, 32, 33, 64, 65}) {
      for (int threads = 1; threads <= 3; ++threads) {
        ScanCase c(kTokens, channels, d_state);
        c.FillSlot(0);
        const std::unique_ptr<Backend> backend = MakeBackend(threads);
        float* const y = threads == 2 ? c.z.data() : c.x.data();
        for (int32_t begin = 0; begin < kTokens; begin += chunk) {
          const int32_t read = begin == 0 ? 0 : 1 + (begin / chunk - 1) % 2;
          backend->SelectiveScan(
              c.Params({{begin, std::min(chunk, kTokens - begin), read, 1 + begin / chunk % 2}}, y,
                       c.stride));
        }
        for (int32_t t = 0; t < kTokens; ++t) {
          ASSERT_TRUE(SameBits(y + t * c.stride, expected.data() + t * channels, channels))
              << "chunk " << chunk << " token " << t << " threads " << threads;
        }
        const int32_t last = 1 + (kTokens - 1) / chunk % 2;
        ASSERT_TRUE(SameBits(c.Slot(last), whole.Slot(1), c.state_floats));
      }
    }
  }
}

// A sequence's bits don't depend on its neighbours, nor on which slot it has.
TEST_P(SelectiveScanTest, NeighboursAndSlotsChangeNothing) {
  const int64_t channels = 40;
  ScanCase alone(30, channels, 16);
  GuardedArray expected(30 * channels);
  const std::unique_ptr<Backend> backend = MakeBackend(2);
  backend->SelectiveScan(alone.Params({{10, 10, kPadSlot, 0}}, expected.data(), channels));
  ScanCase together(30, channels, 16);
  GuardedArray y(30 * channels);
  together.FillSlot(2);
  backend->SelectiveScan(together.Params(
      {{0, 10, 2, 2}, {10, 10, kPadSlot, 4}, {20, 1, kPadSlot, 1}, {21, 9, kPadSlot, 5}}, y.data(),
      channels));
  EXPECT_TRUE(SameBits(y.data() + 10 * channels, expected.data() + 10 * channels, 10 * channels));
  EXPECT_TRUE(SameBits(together.Slot(4), alone.Slot(0), alone.state_floats));
}

// Lanes that pad the last tile stay zero even when a neighbour channel overflows.
TEST_P(SelectiveScanTest, PaddedLanesStayZero) {
  const int64_t channels = 21;
  ScanCase c(3, channels, 16);
  c.bc[0] = std::numeric_limits<float>::infinity();
  GuardedArray y(3 * channels);
  MakeBackend()->SelectiveScan(c.Params({{0, 3, kPadSlot, 0}}, y.data(), channels));
  for (int64_t i = 0; i < c.state_floats; ++i) {
    if (c.ChannelAt(i) < channels) continue;
    ASSERT_EQ(c.Slot(0)[i], 0.0f) << i;
  }
}

TEST_P(SelectiveScanTest, NoSegmentsIsNothing) {
  ScanCase c(1, 16, 16);
  MakeBackend(2)->SelectiveScan(c.Params({}, nullptr, 16));
}

}  // namespace
}  // namespace vivarium::kernels
